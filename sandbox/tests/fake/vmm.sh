#!/bin/sh
# Started under the name of a scenario, through a symbolic link: becomes the
# fake VMM. A VMM is given neither arguments nor environment.
FLASHPAN_FAKE_VMM="${0##*/}" FLASHPAN_FAKE_DIR="${0%/*}" exec "${0%/*}/fake-vmm"
