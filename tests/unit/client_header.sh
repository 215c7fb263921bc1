#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# dsclient.h compiles alone and without a warning, as strict C11 and as C++17, and the library exports exactly
# the functions it declares.
# usage: client_header.sh HEADER LIBRARY CC [CXX]
set -eu
header=$1 library=$2 cc=$3 cxx=${4-}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cat >"$dir/t.c" <<'C'
#include "dsclient.h"
static struct dsc_request at_file_scope = DSC_REQUEST_INIT;
int main(void)
{
	struct dsc_request r = DSC_REQUEST_INIT;

	r.set |= DSC_SET_TEMPERATURE;
	return r.size == sizeof(r) && at_file_scope.size == r.size ? 0 : 1;
}
C
warnings="-Wall -Wextra -Wpedantic -Wshadow -Wundef -Werror"
$cc -std=c11 $warnings -Wstrict-prototypes -Wmissing-prototypes -I"$(dirname "$header")" -o "$dir/t" "$dir/t.c"
"$dir/t"
if [ -n "$cxx" ]; then
	cp "$dir/t.c" "$dir/t.cpp"
	$cxx -std=c++17 $warnings -Wold-style-cast -I"$(dirname "$header")" -o "$dir/tpp" "$dir/t.cpp"
	"$dir/tpp"
fi

grep -o '\bdsc_[a-z_]*()' "$header" | tr -d '()' | sort -u >"$dir/mentioned"
nm -D --defined-only "$library" | awk '$2 == "T" { sub(/@.*/, "", $3); print $3 }' | sort -u >"$dir/exported"
grep -E '^[a-z].*\bdsc_[a-z_]+\(' "$header" | grep -v '^static' | grep -oE '\bdsc_[a-z_]+\(' | tr -d '(' |
	sort -u >"$dir/declared"
[ -s "$dir/declared" ]
diff "$dir/declared" "$dir/exported" || { echo "declared (<) and exported (>) differ"; exit 1; }
undocumented=$(comm -13 "$dir/mentioned" "$dir/declared")
[ -z "$undocumented" ] || { echo "without a comment: $undocumented"; exit 1; }
# Nothing but libc and libprotobuf-c.
readelf -d "$library" | awk '/NEEDED/ { print $NF }' | tr -d '[]' | grep -vE '^(libc|libprotobuf-c|lib[at]san|libubsan)\.so' &&
	{ echo "the library needs more than libc and libprotobuf-c"; exit 1; }
exit 0
