#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# dsctl(1) and `dsctl VERB --help` name the same verbs, and for each verb the same options.
# usage: client_man.sh DSCTL dsctl.1.scd
set -eu
dsctl=$1 page=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

compare() { # NAME: $dir/help against $dir/man
	[ -s "$dir/help" ] || case $1 in stats | evict | unload) true ;; *) false ;; esac || { echo "FAIL $1: --help names nothing"; failed=1; }
	diff "$dir/help" "$dir/man" >"$dir/diff" && return
	echo "FAIL $1: --help (<) and man page (>) differ"
	cat "$dir/diff"
	failed=1
}

# Option names at the start of a term line of one part of the page, "*--a*, *--b* _X_" included.
page_options() { grep -E '^\*--' | grep -oE '\*--[a-z-]+\*' | tr -d '*' | sort -u; }
help_options() { grep -oE '^  --[a-z-]+' | tr -d ' ' | sort -u; }

"$dsctl" --help | sed -n '/^Verbs:/,/^$/p' | grep -oE '^  [a-z]+' | tr -d ' ' | sort >"$dir/help"
grep -oE '^## [a-z]+' "$page" | cut -c4- | sort >"$dir/man"
compare verbs
verbs=$(cat "$dir/help")

"$dsctl" --help | help_options >"$dir/help"
sed -n '/^# GLOBAL OPTIONS/,/^# VERBS/p' "$page" | page_options >"$dir/man"
compare 'global options'

for verb in $verbs; do
	"$dsctl" "$verb" --help | sed '/^Global options:/,$d' | help_options >"$dir/help"
	sed -n "/^## $verb\\b/,/^##* /{/^## $verb\\b/d;p}" "$page" | page_options >"$dir/man"
	compare "$verb"
done
[ -n "$verbs" ] || failed=1
exit $failed
