//go:build shells

package cli

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// These need zsh, fish and groff; .ci/run installs them.

func TestShellFish(t *testing.T) {
	s := begin(t)
	script := s.script("fish", "zulip-nats.fish")
	offer := func(words ...string) []string {
		cmd := exec.Command("fish", "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", script,
			"zulip-nats "+strings.Join(words, " "))
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || stderr.Len() > 0 {
			t.Fatalf("fish, %q: %v\n%s", words, err, stderr.String())
		}
		var all []string
		for line := range strings.Lines(string(out)) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			all = append(all, word)
		}
		return all
	}
	completes(t, offer, optionsInHelp(s))
	if got := offer("run", "--zuliprc", filepath.Dir(script)+"/"); !slices.Contains(got, script) {
		t.Errorf("a file: %q", got)
	}
	if got := offer("run", "--state-dir", filepath.Dir(script)+"/"); slices.Contains(got, script) {
		t.Errorf("no folder: %q", got)
	}
}

// zsh has no way to ask for completions from outside: its own list of matches is printed
// by a Tab in a pseudo-terminal. What is typed is written when the line editor says that it
// reads (before that, the terminal is changed over), and the shell there lives until all of
// its answer is read.
func TestShellZsh(t *testing.T) {
	s := begin(t)
	dir := filepath.Dir(s.script("zsh", "_zulip-nats"))
	offer := func(words ...string) []string {
		cmd := exec.Command("zsh", "-f", "-c", `zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1= PROMPT_EOL_MARK= ; unsetopt zle_bracketed_paste prompt_sp; stty -echo cols 200
fpath=($1 \$fpath); autoload -U compinit; compinit -u -d $1/dump
compadd () {
  local -a __hits; builtin compadd -A __hits -O __hits \"\$@\"; print -r -l -- '<hit>'\${^__hits}
  builtin compadd \"\$@\"
}
list () { zle complete-word; print '<end>' }
zle -N list; zle -C complete-word complete-word _main_complete; bindkey '^I' list
zle-line-init () { print '<rea''dy>' }; zle -N zle-line-init"
zpty -r z out '*<ready>*' && zpty -n -w z "$2"$'\t' && zpty -r z out '*<end>*'
answered=$?
print -r -- "$out"
zpty -d z
exit $answered`, "zsh", dir, "zulip-nats "+strings.Join(words, " "))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("zsh, %q: %v\n%s", words, err, out)
		}
		var all []string
		for line := range strings.Lines(string(out)) {
			if _, hit, ok := strings.Cut(line, "<hit>"); ok {
				all = append(all, strings.TrimSuffix(strings.TrimSpace(hit), "="))
			}
		}
		if len(all) == 0 {
			t.Errorf("zsh, %q: nothing is offered: %q", words, out)
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	completes(t, offer, optionsInHelp(s))
}

// groff is content with the manual page.
func TestShellGroff(t *testing.T) {
	s := begin(t)
	for _, warnings := range []string{"-ww", "-wall"} {
		cmd := exec.Command("groff", warnings, "-z", "-Tutf8", "-K", "utf8", "-man")
		cmd.Stdin = strings.NewReader(s.runs("man").stdout)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("groff %s: %v\n%s", warnings, err, out)
		}
	}
}
