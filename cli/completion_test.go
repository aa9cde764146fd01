package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// optionsInHelp are the commands that help lists, and for each the options that its own
// help lists.
func optionsInHelp(s *story) map[string][]string {
	s.Helper()
	e := s.runs("help")
	_, list, _ := strings.Cut(e.stdout, "COMMANDS:")
	list, _, _ = strings.Cut(list, "OPTIONS:")
	all := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^ +([a-z]+)(, [a-z]+)? {2,}`).FindAllStringSubmatch(list, -1) {
		help := s.runs(m[1], "--help").stdout
		if m[1] == "help" { // says what `help` says
			help = ""
		}
		options := []string{"--help"}
		for _, m := range regexp.MustCompile(`(?m)^ +(--[a-z-]+)`).FindAllStringSubmatch(help, -1) {
			if m[1] != "--help" {
				options = append(options, m[1])
			}
		}
		slices.Sort(options)
		all[m[1]] = options
	}
	if len(all) < 9 || len(all["run"]) < 40 || !slices.Contains(all["status"], "--watch") {
		s.Fatalf("help lists %v", all)
	}
	return all
}

// script writes the completion for a shell, and gives its place.
func (s *story) script(shell, name string) string {
	s.Helper()
	e := s.runs("completion", shell)
	if e.code != 0 || e.stderr != "" {
		s.Fatalf("completion %s: exit code %d, %s", shell, e.code, e.stderr)
	}
	path := filepath.Join(s.TempDir(), name)
	if err := os.WriteFile(path, []byte(e.stdout), 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

// completes compares what a shell offers for a line, the last word of which is begun,
// with what it should.
func completes(t *testing.T, offer func(words ...string) []string, want map[string][]string) {
	t.Helper()
	commands := offer("")
	for command, options := range want {
		if !slices.Contains(commands, command) {
			t.Errorf("%s is not offered: %v", command, commands)
		}
		got := offer(command, "--")
		slices.Sort(got)
		if !slices.Equal(got, options) {
			t.Errorf("%s offers\n%v, and its help has\n%v", command, got, options)
		}
	}
	for line, want := range map[string]string{
		"he": "health help", "run --zuli": "--zuliprc", "run --realm acme --delete": "--delete-queue",
		"completion f": "fish", "help statu": "status", "run --nats-inbox-prefix x --nats-js-d": "--nats-js-domain",
	} {
		got := offer(strings.Split(line, " ")...)
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%q offers %q, want %q", line, got, want)
		}
	}
}

// bash reads the script, and completes every command and option; files where a file is
// wanted, folders where a folder is.
func TestBashCompletes(t *testing.T) {
	s := begin(t)
	script := s.script("bash", "zulip-nats")
	dir := t.TempDir()
	for _, name := range []string{"a key", "zuliprc"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	offer := func(words ...string) []string {
		cmd := exec.Command("bash", append([]string{"--norc", "-uc", `source "$0"
			complete -p zulip-nats >/dev/null
			COMP_WORDS=(zulip-nats "$@") COMP_CWORD=$#
			_zulip_nats
			[ "${#COMPREPLY[@]}" -eq 0 ] || printf '%s\n' "${COMPREPLY[@]}"`, script}, words...)...)
		cmd.Dir, cmd.Stderr = dir, os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("bash, %q: %v", words, err)
		}
		return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
	}
	completes(t, offer, optionsInHelp(s))
	for _, c := range []struct{ words, want string }{
		{"run|--zuliprc|", "a key|folder|zuliprc"}, {"run|--zuliprc|a", "a key"}, {"run|--zuliprc|=|z", "zuliprc"},
		{"run|--zuliprc|=", "a key|folder|zuliprc"}, {"run|--state-dir|", "folder"}, {"run|--realm|", ""},
		{"run|--insecure|--pp", "--pprof"}, {"|", ""}, {"nothing|--", ""},
	} {
		got := offer(strings.Split(c.words, "|")...)
		slices.Sort(got)
		if strings.Join(got, "|") != c.want {
			t.Errorf("%q offers %q, want %q", c.words, got, c.want)
		}
	}
}

func TestCompletionOfNothing(t *testing.T) {
	s := begin(t)
	for _, args := range [][]string{{"completion"}, {"completion", "tcsh"}, {"completion", "bash", "zsh"}} {
		s.runs(args...).want(t, 2, "zulip-nats completion bash")
	}
}

// The manual page has every command and option, and means nothing to roff that it should
// not.
func TestManual(t *testing.T) {
	s := begin(t)
	e := s.runs("man")
	if e.code != 0 || e.stderr != "" {
		t.Fatalf("exit code %d, %s", e.code, e.stderr)
	}
	plain := strings.ReplaceAll(e.stdout, `\-`, "-")
	for command, options := range optionsInHelp(s) {
		_, part, ok := strings.Cut(plain, ".SS "+command+"\n")
		part, _, _ = strings.Cut(part, "\n.S")
		if !ok {
			t.Errorf("no %s", command)
		}
		for _, o := range options {
			if o != "--help" && !strings.Contains(part, `\fB`+o+`\fR`) {
				t.Errorf("no %s of %s", o, command)
			}
		}
	}
	for _, words := range []string{`\fB--zuliprc\fR \fIFILE\fR`, "ZULIP_NATS_NATS_URL, NATS_URL", "(default: 24h)",
		".SH EXIT STATUS", "ZULIP_<realm> is created"} {
		if !strings.Contains(plain, words) {
			t.Errorf("it does not say %q", words)
		}
	}
	for line := range strings.Lines(e.stdout) {
		if m := regexp.MustCompile(`^[.']\S*`).FindString(line); m != "" &&
			!slices.Contains([]string{".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".I", ".br"}, m) {
			t.Errorf("a line that is no macro of ours: %s", line)
		}
	}
	if again := s.runs("man"); again.stdout != e.stdout {
		t.Error("it is not the same twice")
	}
}
