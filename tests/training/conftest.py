"""Lets the tests here import `tiny`, the model and task they share."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
