"""Arrays in, arrays out: boxes, anchors, matching, suppression, losses."""
