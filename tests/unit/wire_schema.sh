#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The range generator must refuse a schema in which anything is unbounded.
# usage: wire_schema.sh RANGES PROTOC PROTO_DIR PROTOBUF_INCLUDE
set -eu
ranges=$1 protoc=$2 proto=$3 include=$4
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=0

# try WANT NAME BODY: WANT is ok, or a part of the sentence that must be said.
try() {
	printf 'syntax = "proto2";\npackage dsd;\nimport "options.proto";\n%s\n' "$3" >"$dir/t.proto"
	"$protoc" -I"$dir" -I"$proto" -I"$include" --include_imports \
		--descriptor_set_out="$dir/t.pb" "$dir/t.proto"
	rm -f "$dir/t.c"
	if "$ranges" "$dir/t.pb" t.proto "$dir/t.c" 2>"$dir/err"; then got=ok; else got=$(cat "$dir/err"); fi
	case $got in
	ok) [ "$1" = ok ] && [ -s "$dir/t.c" ] && return ;;
	*"$1"*) [ ! -e "$dir/t.c" ] && return ;;
	esac
	echo "FAIL $2: got '$got', want '$1'"
	failed=1
}

try ok bounded 'message M { optional uint32 a = 1 [(range) = {min: 1, max: 2}]; }'
try ok any 'message M { optional uint64 a = 1 [(range) = {any: true}]; }'
try ok enum_and_bool 'enum E { X = 1; } message M { optional E e = 1; optional bool b = 2; }'
try ok sub 'message A {} message M { repeated A a = 1 [(range) = {max_count: 3}]; }'
try 'M.a: a number needs' number_without_range 'message M { optional uint32 a = 1; }'
try 'M.a: a number needs' number_without_max 'message M { optional float a = 1 [(range) = {min: 1}]; }'
try 'M.a: got min 3 and max 2' empty_range 'message M { optional float a = 1 [(range) = {min: 3, max: 2}]; }'
try 'past 2^53' inexact 'message M { optional uint64 a = 1 [(range) = {min: 0, max: 1e18}]; }'
try 'M.s: a string or bytes' string_without_max 'message M { optional string s = 1; }'
try 'M.s: a string or bytes' bytes_without_max 'message M { optional bytes s = 1; }'
try 'M.i: a repeated field needs' repeated_number \
	'message M { repeated uint32 i = 1 [(range) = {min: 0, max: 1}]; }'
try 'M.a: a repeated field needs' repeated_message 'message A {} message M { repeated A a = 1; }'
try 'M.e: a repeated field needs' repeated_enum 'enum E { X = 1; } message M { repeated E e = 1; }'
try 'not repeated' count_of_one 'message M { optional bool b = 1 [(range) = {max_count: 2}]; }'
try 'M.m: the message contains itself' direct_recursion 'message M { optional M m = 1; }'
try 'the message contains itself' indirect_recursion \
	'message A { optional M m = 1; } message M { optional A a = 1; }'
try 'want at most 8' too_deep "$(for i in 1 2 3 4 5 6 7 8; do
	echo "message M$i { optional M$((i + 1)) m = 1; }"; done) message M9 {}"
try 'declared inside a message' nested_type 'message M { message N {} optional N n = 1; }'
exit $failed
