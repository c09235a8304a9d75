"""What runs inside the sandbox, on nothing but the standard library: `zygote` starts runs, `program` is a run,
`kernel` makes the system calls, `plain` is the one module both sides share.

These modules are started by path, with an isolated interpreter; they must import nothing else of this project."""
