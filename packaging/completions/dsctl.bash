# SPDX-License-Identifier: Apache-2.0
# bash completion of dsctl. Asks dsctl itself, so it knows what that version knows.
_dsctl_models()
{
	dsctl models 2>/dev/null | sed -n '2,$s/^\([^ :]*\) .*/\1/p'
}

_dsctl()
{
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} verb= i
	local verbs=$(dsctl --help 2>/dev/null | sed -n '/^Verbs:/,/^$/s/^  \([a-z]*\) .*/\1/p')

	for ((i = 1; i < COMP_CWORD; i++)); do
		case " ${verbs//$'\n'/ } " in
		*" ${COMP_WORDS[i]} "*)
			verb=${COMP_WORDS[i]}
			break
			;;
		esac
	done
	case $previous in
	--socket | --admin-socket | --inspect | --shape)
		compopt -o filenames
		COMPREPLY=($(compgen -f -- "$current"))
		return
		;;
	--quant)
		COMPREPLY=($(compgen -W 'f32 bf16 q8 q4' -- "$current"))
		return
		;;
	--entry)
		COMPREPLY=($(compgen -W 'f32 bf16 int8' -- "$current"))
		return
		;;
	--priority)
		COMPREPLY=($(compgen -W 'interactive normal batch' -- "$current"))
		return
		;;
	--model)
		COMPREPLY=($(compgen -W "$(_dsctl_models)" -- "$current"))
		return
		;;
	esac
	if [[ $current == -* ]]; then
		COMPREPLY=($(compgen -W "$(dsctl $verb --help 2>/dev/null | sed -n 's/^  \(--[a-z-]*\).*/\1/p')" -- "$current"))
	elif [[ -z $verb ]]; then
		COMPREPLY=($(compgen -W "$verbs" -- "$current"))
	elif [[ $verb == @(evict|unload|reload|drain) ]]; then
		COMPREPLY=($(compgen -W "$(_dsctl_models)" -- "$current"))
	elif [[ $verb == load ]]; then
		compopt -o filenames
		COMPREPLY=($(compgen -d -- "$current"))
	elif [[ $verb == cancel ]]; then
		COMPREPLY=($(compgen -W "$(dsctl ps 2>/dev/null | sed -n '2,$s/^ *\([0-9]*\) .*/\1/p')" -- "$current"))
	fi
}
complete -F _dsctl dsctl
