"""Lets the tests here import `small`, the source and detector they share."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
