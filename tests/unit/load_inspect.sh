#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# dsd-worker --inspect: load_inspect.sh WORKER TESTS_DIRECTORY
set -u
worker=$1 golden=$2/golden
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
failed=0

# expect STATUS PATTERN-IN-STDOUT PATTERN-IN-STDERR ARGUMENTS...
expect()
{
	status=$1 out=$2 err=$3
	shift 3
	"$worker" --inspect "$@" >"$dir/out" 2>"$dir/err"
	got=$?
	if [ $got -ne "$status" ] || ! grep -q -- "$out" "$dir/out" && [ -n "$out" ] ||
		! grep -q -- "$err" "$dir/err" && [ -n "$err" ] ||
		[ -z "$out" ] && [ -s "$dir/out" ] || [ -z "$err" ] && [ -s "$dir/err" ]; then
		echo "inspect $*: status $got, want $status, \"$out\" and \"$err\""
		cat "$dir/out" "$dir/err"
		failed=1
	fi
}

mkdir "$dir/m" "$dir/empty"
expect 0 '^arch  *deepseek_v2' '' "$golden/v2-lite-tiny"
expect 0 '^loads  *yes' '' "$golden/v2-sharded"
expect 0 '"tensor_types":{"BF16":' '' "$golden/v2-sharded" --json
expect 0 '^reason  *config.json: missing' '' "$golden/v2-tiny/model.safetensors"

cp "$golden/v2-tiny/config.json" "$golden/v2-tiny/model.safetensors" "$dir/m"
sed -i 's/deepseek_v2/deepseek_v3/' "$dir/m/config.json"
expect 0 '^reason .*deepseek_v3 is known but not supported yet' '' "$dir/m"
sed -i 's/deepseek_v3/deepseek_v2/; s/"hidden_size": 32/"hidden_size": 48/' "$dir/m/config.json"
expect 0 '^reason .*embed_tokens.weight: shape \[320, 32\], want \[320, 48\]' '' "$dir/m"
expect 0 '"loads":false' '' "$dir/m" --json

truncate -s -1 "$dir/m/model.safetensors"
expect 1 '' 'model.safetensors: .* but the data has' "$dir/m"
truncate -s 100 "$dir/m/model.safetensors"
expect 1 '' 'model.safetensors: header of .* bytes in a file of 100' "$dir/m"
echo '{"model_type":' >"$dir/m/config.json"
expect 1 '' 'config.json: ends at byte' "$dir/m"
expect 1 '' 'want a directory with config.json, or a .safetensors file' "$dir/empty"
expect 1 '' 'No such file or directory' "$dir/none"
expect 1 '' 'GGUF is not supported yet' "$dir/model.gguf"
exit $failed
