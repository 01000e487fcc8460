"""COCO metrics and error analysis of detections."""
