#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The man pages are set without a warning, on a terminal of 80 columns: man_warnings.sh PAGE.scd...
set -eu
command -v scdoc >/dev/null && command -v man >/dev/null || {
	echo "no scdoc or man here"
	exit 77
}
page=$(mktemp)
trap 'rm -f "$page"' EXIT
for source; do
	scdoc <"$source" >"$page"
	said=$(MANWIDTH=80 man --warnings -E UTF-8 -l "$page" 2>&1 >/dev/null)
	[ -z "$said" ] || {
		echo "$source: $said"
		exit 1
	}
done
