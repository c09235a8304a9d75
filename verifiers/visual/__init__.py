"""What the kinds `iou`, `grounding` and `classify` share: boxes and frames, matching, parsing, rewards, mAP."""
