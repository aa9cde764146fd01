package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"zulip-nats/schema"
)

// completion prints what a shell has to know. It is made from the options and asks nobody
// later: what the library has instead runs the program with the words of the line at each
// Tab, by eval, and so whatever stands in them.
func (a *app) completion() *urfave.Command {
	shells := map[string]func(io.Writer, []said) error{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}
	return &urfave.Command{
		Name:      "completion",
		Usage:     "print what bash, zsh or fish need to complete commands and options",
		UsageText: "zulip-nats completion bash|zsh|fish",
		ArgsUsage: "bash|zsh|fish",
		Description: "bash: zulip-nats completion bash > ~/.local/share/bash-completion/completions/zulip-nats\n" +
			"zsh:  zulip-nats completion zsh > a folder of $fpath, as _zulip-nats\n" +
			"fish: zulip-nats completion fish > ~/.config/fish/completions/zulip-nats.fish",
		Action: func(u *urfave.Context) error {
			write := shells[u.Args().First()]
			if write == nil || u.NArg() != 1 {
				return usageErrorf("completion needs the name of a shell, bash, zsh or fish: `zulip-nats completion bash`")
			}
			return write(a.stdout, allSaid(u.App))
		},
	}
}

// said is what a command says of itself.
type said struct {
	name, usage string
	words       []string // what may stand behind it that is no option
	flags       []saidFlag
}

// saidFlag is one option.
type saidFlag struct {
	name  string
	usage string // without the marks of the value's name
	value string // the value's name: FILE, TIME, ...; "" if there is none
}

func (f *saidFlag) option() string { return "--" + f.name }

// allSaid goes over the commands and options. --help is everywhere.
func allSaid(u *urfave.App) (all []said) {
	for _, c := range u.VisibleCommands() {
		s := said{name: c.Name, usage: c.Usage}
		for _, o := range optionsOf(c) {
			if o.Hidden {
				continue
			}
			s.flags = append(s.flags, saidFlag{o.Name, o.says(), o.value()})
		}
		s.flags = append(s.flags, saidFlag{name: "help", usage: "show help"})
		all = append(all, s)
	}
	for i := range all {
		switch all[i].name {
		case "help":
			for _, c := range all {
				all[i].words = append(all[i].words, c.name)
			}
		case "completion":
			all[i].words = []string{"bash", "zsh", "fish"}
		case "schema":
			all[i].words = schema.Names()
		}
	}
	return all
}

// valued gives the options whose value is of a kind, of all commands, sorted.
func valued(all []said, is func(value string) bool) (options []string) {
	for i := range all {
		for _, f := range all[i].flags {
			if f.value != "" && is(f.value) {
				options = append(options, f.option())
			}
		}
	}
	slices.Sort(options)
	return slices.Compact(options)
}

func commandNames(all []said) (names []string) {
	for _, c := range all {
		names = append(names, c.name)
	}
	return names
}

// all is what may stand behind a command.
func (s *said) all() []string {
	words := slices.Clone(s.words)
	for _, f := range s.flags {
		words = append(words, f.option())
	}
	return words
}

func bashCompletion(w io.Writer, all []said) error {
	var b strings.Builder
	b.WriteString(`# bash completion for zulip-nats
_zulip_nats() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W '` + strings.Join(append(commandNames(all), "--help", "--version"), " ") + `' -- "$cur"))
        return
    fi
    # --name=value is three words.
    if [ "$cur" = "=" ]; then
        cur=
    elif [ "$prev" = "=" ]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    case $prev in
`)
	files := func(value string) bool { return value == "FILE" }
	folders := func(value string) bool { return value == "FOLDER" }
	others := func(value string) bool { return !files(value) && !folders(value) }
	fmt.Fprintf(&b, `    %s)
        local IFS=$'\n'
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$cur"))
        return ;;
    %s)
        local IFS=$'\n'
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -d -- "$cur"))
        return ;;
    %s)
        return ;;
    esac
    case ${COMP_WORDS[1]} in
`, strings.Join(valued(all, files), "|"), strings.Join(valued(all, folders), "|"), strings.Join(valued(all, others), "|"))
	for i := range all {
		fmt.Fprintf(&b, "    %s) words='%s' ;;\n", all[i].name, strings.Join(all[i].all(), " "))
	}
	b.WriteString(`    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -F _zulip_nats zulip-nats
`)
	_, err := io.WriteString(w, b.String())
	return err
}

func zshCompletion(w io.Writer, all []said) error {
	var b strings.Builder
	b.WriteString(`#compdef zulip-nats

compdef _zulip-nats zulip-nats

_zulip-nats() {
    local -a commands
    commands=(
`)
	for _, c := range all {
		fmt.Fprintf(&b, "        %s\n", quoted(c.name+":"+c.usage))
	}
	b.WriteString(`    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
`)
	special := strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `:`, `\:`)
	for _, c := range all {
		fmt.Fprintf(&b, "    %s)\n        _arguments", c.name)
		for _, f := range c.flags {
			action := map[string]string{"": "", "FILE": ":" + f.value + ":_files", "FOLDER": ":" + f.value + ":_files -/"}
			behind, known := action[f.value]
			if !known {
				behind = ":" + special.Replace(f.value) + ": "
			}
			mark := ""
			if f.value != "" {
				mark = "="
			}
			fmt.Fprintf(&b, " \\\n            %s", quoted(f.option()+mark+"["+special.Replace(f.usage)+"]"+behind))
		}
		if len(c.words) > 0 {
			fmt.Fprintf(&b, " \\\n            %s", quoted("1:word:("+strings.Join(c.words, " ")+")"))
		}
		b.WriteString("\n        ;;\n")
	}
	b.WriteString("    esac\n}\n\nif [ \"$funcstack[1]\" = _zulip-nats ]; then\n    _zulip-nats \"$@\"\nfi\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func fishCompletion(w io.Writer, all []said) error {
	var b strings.Builder
	line := func(format string, v ...any) { fmt.Fprintf(&b, "complete -c zulip-nats "+format+"\n", v...) }
	escape := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	b.WriteString("# fish completion for zulip-nats\n")
	line("-f")
	line("-n __fish_use_subcommand -l help -d 'show help'")
	line("-n __fish_use_subcommand -l version -d 'the same as the command version'")
	for _, c := range all {
		line("-n __fish_use_subcommand -a %s -d '%s'", c.name, escape.Replace(c.usage))
	}
	for _, c := range all {
		// The first word, and not any: help takes names of commands too.
		when := "'set -l words (commandline -opc); test \"$words[2]\" = " + c.name + "'"
		for _, f := range c.flags {
			takes := map[string]string{"": "", "FILE": " -r -F", "FOLDER": " -x -a '(__fish_complete_directories)'"}
			kind, known := takes[f.value]
			if !known {
				kind = " -x"
			}
			line("-n %s -l %s%s -d '%s'", when, f.name, kind, escape.Replace(f.usage))
		}
		if len(c.words) > 0 {
			line("-n %s -a '%s'", when, strings.Join(c.words, " "))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// quoted is a word of zsh in single quotes.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
