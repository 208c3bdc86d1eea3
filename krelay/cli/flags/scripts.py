"""The scripts that connect a shell with `krelay __complete`.

`krelay __complete` answers as cobra's command of that name: a word on each line, perhaps with a tab
and a description, then `:DIRECTIVE`. A directive without 4 means that file names may follow, and 2
that no space follows the word.
"""

from __future__ import annotations

_BASH = r"""
_krelay() {
    local line=${COMP_LINE:0:COMP_POINT} found word head directive=0
    local -a lines=()
    COMPREPLY=()
    while IFS= read -r found; do
        lines+=("$found")
    done < <("$1" __complete line "$line" 2>/dev/null)
    (( ${#lines[@]} )) || return 0
    found=${lines[${#lines[@]}-1]}
    directive=${found#:}
    unset "lines[${#lines[@]}-1]"
    # Bash replaces only what follows the last of these characters.
    word=${line##*[[:space:]]}
    [[ $word == -*=* ]] && word=${word#*=}
    [[ $COMP_WORDBREAKS == *:* ]] && head=${word%"${word##*:}"}
    for found in "${lines[@]}"; do
        found=${found%%$'\t'*}
        COMPREPLY+=("${found#"$head"}")
    done
    (( directive & 2 )) && compopt -o nospace 2>/dev/null
    (( directive & 4 )) && compopt +o default 2>/dev/null
    return 0
}
complete -o default -F _krelay krelay
"""

_ZSH = r"""
#compdef krelay
_krelay() {
    local line value text directive
    local -a lines found space
    lines=("${(@f)$("${(Q)words[1]}" __complete words \
        "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    directive=${lines[-1]#:}
    lines[-1]=()
    [[ $PREFIX == -*=* ]] && compset -P '*='
    if (( ! $#lines )); then
        (( ${directive:-0} & 4 )) || _files
        return
    fi
    for line in $lines; do
        value=${line%%$'\t'*}
        text=${${line#"$value"}#$'\t'}
        found+=("${value//:/\\:}${text:+:$text}")
    done
    (( directive & 2 )) && space=(-S '')
    _describe -V krelay found $space
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _krelay "$@"
else
    compdef _krelay krelay
fi
"""

_FISH = r"""
function __krelay_complete
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    set -l word (commandline -ct)
    set -l lines ($program __complete words $words "$word" 2>/dev/null)
    test (count $lines) -gt 0; or return
    set -l directive (string sub -s 2 -- $lines[-1])
    set -e lines[-1]
    set -l flag (string match -r -- '^-[^=]*=' "$word")
    if test (count $lines) -eq 0 -a "$directive" = 0
        set lines (__fish_complete_path (string replace -r -- '^-[^=]*=' '' "$word"))
    end
    for line in $lines
        printf '%s\n' "$flag$line"
    end
end
complete --command krelay --no-files --arguments '(__krelay_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""The script of each shell."""
