import sys
from pathlib import Path

# The test kinds are named as a user names their own: 'hostile_kinds:Commanded', found through sys.path.
sys.path.insert(0, str(Path(__file__).parent))
