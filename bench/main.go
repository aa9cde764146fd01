//go:build linux

// Command bench measures how fast zulip-nats is, what it costs, and how near that is to
// what anybody could reach on the same server:
//
//	go run ./bench                              all sections, some ten minutes
//	go run ./bench -only drain,live -rounds 5
//	go run ./bench -list
//
// It builds the program, starts nats-servers and programs in processes of their own, and
// is the Zulip that they follow itself (package zulipsim). A figure by itself says little:
// it is the machine's as much as ours. So each stands beside a reference that does the
// same job, or a part of it, on the same server in the same run. The two are run by turns,
// and what is printed is the median of the rounds: of the figures, and of each round's
// ratio. Nothing here is a test, and nothing fails for being slow.
//
// main.go is the command line and the order of things, scope.go one section at work,
// report.go the table, zulip.go and process.go what stands around the program. Each
// section has a file of its own, whose comment says what is measured, from when to when,
// and what runs beside it. docs/speed.md says how to read the table.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"zulip-nats/stream/natstest"
)

// natscli is the nats command, where no other is named; .ci/run has the same.
const natscli = "github.com/nats-io/natscli/nats@v0.5.0"

// section is one part of the table.
type section struct {
	name, about string
	run         func(*scope)
}

var sections = []section{
	{"drain", "a backlog in one answer, beside a bare loop and nats bench", drain},
	{"live", "one event at a time, beside the smallest relay, and beside busy realms", live},
	{"far", "NATS or Zulip 1, 10, 50 ms away", far},
	{"memory", "how large the program becomes, and how much it allocates", memory},
	{"cost", "processor time, start, stop, sizes", cost},
	{"refill", "messages read back from history after a lost queue", refill},
	{"old", "a start on a large stream", old},
	{"realms", "1 to 1,000 organizations in one process", realms},
	{"peers", "other programs that do the same job", peers},
}

// options are the command line.
type options struct {
	only    string
	rounds  int
	scale   float64
	full    bool
	json    string
	nats    string
	program string
	list    bool

	profiles string
}

// bench is one run.
type bench struct {
	options
	root   string // the folder of go.mod
	dir    string // everything temporary
	errors io.Writer

	mu    sync.Mutex
	named string // path of the nats command, once it is there
	rows  []row
}

func main() {
	children()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// children are what this binary is when it starts itself: a nats-server, or a relay. It
// returns in the one that was started by a person.
func children() {
	natstest.Main()
	relayMain()
}

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	b := &bench{errors: errs}
	chosen, err := b.parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintln(errs, "bench:", err)
		return 2
	case b.list:
		for _, s := range chosen {
			fmt.Fprintf(out, "%-8s %s\n", s.name, s.about)
		}
		return 0
	}
	if b.dir, err = os.MkdirTemp("", "zulip-nats-bench-"); err != nil {
		fmt.Fprintln(errs, "bench:", err)
		return 1
	}
	defer os.RemoveAll(b.dir)
	if err := b.build(ctx); err != nil {
		fmt.Fprintln(errs, "bench:", err)
		return 1
	}
	about := b.about(ctx)
	about.print(out)
	failed := false
	for _, s := range chosen {
		began := time.Now()
		before := len(b.rows)
		fmt.Fprintf(errs, "-- %s: %s\n", s.name, s.about)
		if !newScope(ctx, b, s.name).attempt(s.run) {
			failed = true
		}
		printRows(out, b.rows[before:])
		fmt.Fprintf(errs, "-- %s: %v\n", s.name, time.Since(began).Round(time.Second))
		if ctx.Err() != nil {
			fmt.Fprintln(errs, "bench: interrupted")
			failed = true
			break
		}
	}
	if b.json != "" {
		text, err := json.MarshalIndent(report{about, b.rows}, "", "  ")
		if err == nil {
			err = os.WriteFile(b.json, append(text, '\n'), 0o644)
		}
		if err != nil {
			fmt.Fprintln(errs, "bench: writing the JSON:", err)
			failed = true
		}
	}
	if failed {
		return 1
	}
	return 0
}

// parse reads the command line, and says which sections are asked for, in their order.
func (b *bench) parse(args []string) ([]section, error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&b.only, "only", "", "`SECTIONS` to run, with commas between; all unless given")
	f.IntVar(&b.rounds, "rounds", 3, "how often each thing is measured; an odd `N` has a middle")
	f.Float64Var(&b.scale, "scale", 1, "`FACTOR` on the numbers of events and messages; 0.01 to see that it runs")
	f.BoolVar(&b.full, "full", false, "all cases, in the sizes of the goals: takes long")
	f.StringVar(&b.json, "json", "", "`FILE` to write the same to as JSON")
	f.StringVar(&b.nats, "nats", "", "`PATH` of the nats command, or none to leave out what needs it; unless given, "+
		natscli+" is built")
	f.StringVar(&b.program, "program", "", "`PATH` of another zulip-nats; unless given, that of this checkout is built")
	f.StringVar(&b.profiles, "profiles", "", "`FOLDER` for profiles of the program, of the section realms")
	f.BoolVar(&b.list, "list", false, "list the sections and end")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.SetOutput(b.errors)
			f.PrintDefaults()
		}
		return nil, err
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("%q is no option; -only names sections", f.Arg(0))
	case b.rounds < 1:
		return nil, fmt.Errorf("-rounds %d: at least one round is needed", b.rounds)
	case !(b.scale > 0 && b.scale <= 100):
		return nil, fmt.Errorf("-scale %v: a number above 0 and up to 100 is needed", b.scale)
	}
	if b.only == "" {
		return sections, nil
	}
	names := strings.Split(b.only, ",")
	for _, name := range names {
		if !slices.ContainsFunc(sections, func(s section) bool { return s.name == name }) {
			return nil, fmt.Errorf("-only: there is no section %q; -list shows them", name)
		}
	}
	return slices.DeleteFunc(slices.Clone(sections), func(s section) bool { return !slices.Contains(names, s.name) }), nil
}

// build makes the program, as a release and the image are built, and looks whether what is
// named instead is there.
func (b *bench) build(ctx context.Context) (err error) {
	if b.root, err = command(ctx, "", "go", "list", "-m", "-f", "{{.Dir}}"); err != nil {
		return err
	}
	if b.nats != "" && b.nats != "none" {
		if _, err := command(ctx, "", b.nats, "--version"); err != nil {
			return err
		}
	}
	if b.program != "" {
		if b.program, err = filepath.Abs(b.program); err != nil {
			return err
		}
		_, err = command(ctx, "", b.program, "version")
		return err
	}
	b.program = filepath.Join(b.dir, "zulip-nats")
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", "urfave_cli_no_docs", "-ldflags", "-s -w",
		"-o", b.program, ".")
	c.Dir, c.Env = b.root, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, bytes.TrimSpace(text))
	}
	return nil
}

// natsCommand is the path of the nats command, which is built at its first use. It is
// empty where there shall be none.
func (b *bench) natsCommand(t *scope) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.nats == "none":
		return ""
	case b.nats != "":
		return b.nats
	case b.named == "":
		t.Logf("building %s", natscli)
		c := exec.CommandContext(t.Context(), "go", "install", natscli)
		c.Env = append(os.Environ(), "GOBIN="+b.dir)
		if text, err := c.CombinedOutput(); err != nil {
			t.Fatalf("go install %s: %v\n%s", natscli, err, text)
		}
		b.named = filepath.Join(b.dir, "nats")
	}
	return b.named
}

// about is the head of the output.
func (b *bench) about(ctx context.Context) about {
	commit, err := command(ctx, b.root, "git", "describe", "--always", "--dirty=, with changes", "--abbrev=12")
	if err != nil {
		commit = "not known"
	}
	a := about{When: time.Now().UTC().Truncate(time.Second), Commit: commit, Go: runtime.Version(),
		System: runtime.GOOS + "/" + runtime.GOARCH, Processors: runtime.NumCPU(), NATSServer: server.VERSION,
		NATS:   natscli[strings.LastIndex(natscli, "@")+1:],
		Rounds: b.rounds, Scale: b.scale, Full: b.full}
	if b.nats != "" {
		a.NATS = b.nats
		if text, err := command(ctx, "", b.nats, "--version"); err == nil && b.nats != "none" {
			a.NATS = text
		}
	}
	if filepath.Dir(b.program) != b.dir {
		if a.Program, err = command(ctx, "", b.program, "version"); err != nil {
			a.Program = b.program
		}
		a.Program = strings.Join(strings.Fields(a.Program), " ")
	}
	return a
}

// sized is a number of events or messages: another one with -full, and by the scale.
func (b *bench) sized(n, full int) int {
	if b.full {
		n = full
	}
	return max(1, int(float64(n)*b.scale))
}

// command runs something in a folder, and gives what it printed on stdout.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	out, err := c.Output()
	if err != nil {
		var text []byte
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			text = bytes.TrimSpace(e.Stderr)
		}
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{name}, args...), " "), err, text)
	}
	return strings.TrimSpace(string(out)), nil
}
