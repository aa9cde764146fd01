//go:build unix

// Package harness is what the tests of the whole product stand on: the program, built
// once and started as a user does; the journal of what it writes, in which a secret, a
// panic or a data race fails the test that ran it; and the stream, read back as a
// consumer reads it. What is done to the program, and what is compared in the end, is
// each suite's own.
//
// A suite's TestMain is one line, [Main]. Nothing here depends on how fast the machine
// is: what has to come is waited for, with a limit that a busy machine does not reach.
package harness

import (
	"encoding/base64"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

var (
	seed = flag.Uint64("seed", 0, "where chance comes from in the tests that kill; 0: a new seed, which is printed")
	logs = flag.String("logs", "", "a `folder` in which the logs of all programs and servers are kept")
)

// Patience is how long something may take that has to happen. Nothing is tested by it: it
// only ends a test that will not end.
const Patience = 2 * time.Minute

// program is the path of the program under test.
var program string

// Program is the path of the program under test, for what starts it in ways of its own.
func Program() string { return program }

// Main runs the tests of a package, so many of them at a time (see [natstest.Parallel]).
// It does not return.
func Main(m *testing.M, parallel int) {
	natstest.Main() // does not return in a test binary that was started to be a nats-server
	os.Exit(run(m, parallel))
}

func run(m *testing.M, parallel int) int {
	dir, err := os.MkdirTemp("", "zulip-nats-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "zulip-nats")
	args := []string{"build", "-o", program}
	if raceDetector {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "zulip-nats")...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go %s: %v\n%s", strings.Join(build.Args[1:], " "), err, out)
		return 1
	}
	natstest.Parallel(parallel)
	return m.Run()
}

// Fewer is n, or underRace where the race detector makes everything several times slower.
func Fewer(n, underRace int) int {
	if raceDetector {
		return underRace
	}
	return n
}

// Seed is where the chance of a test comes from: what -seed says, or something new, which
// is printed.
func Seed(t testing.TB) uint64 {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d: the same again with -run '^%s$' -seed %d", s, strings.ReplaceAll(t.Name(), "/", "$/^"), s)
	return s
}

// Rand is the chance itself.
func Rand(t testing.TB) *rand.Rand { return rand.New(rand.NewPCG(Seed(t), 0)) }

// Within waits until something is true, and says whether it came to be.
func Within(limit time.Duration, is func() bool) bool {
	for deadline, pause := time.Now().Add(limit), 5*time.Millisecond; !is(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// Eventually is Within for what has to come: the test ends here if it does not. Only for
// the test's own goroutine.
func Eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	if !Within(Patience, is) {
		t.Fatalf("waited %v for: %s", Patience, what)
	}
}

// EventuallyQueue waits until one of the living queues is as wanted, and gives it.
func EventuallyQueue(t testing.TB, what string, queues func() []zulipsim.QueueInfo,
	is func(zulipsim.QueueInfo) bool) (found zulipsim.QueueInfo) {
	t.Helper()
	Eventually(t, what, func() bool {
		all := queues()
		i := slices.IndexFunc(all, func(q zulipsim.QueueInfo) bool { return q.Dead == "" && is(q) })
		if i >= 0 {
			found = all[i]
		}
		return i >= 0
	})
	return found
}

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// WriteFile writes a file that only its owner may read.
func WriteFile(t testing.TB, path, text string) {
	t.Helper()
	Must(t, os.WriteFile(path, []byte(text), 0o600))
}

// WriteZuliprc writes the zuliprc that Zulip serves for an account, whose key may show in
// no log from then on.
func WriteZuliprc(t testing.TB, path, email, key, site string) {
	t.Helper()
	KeepSecret(key)
	KeepSecret(base64.StdEncoding.EncodeToString([]byte(email + ":" + key)))
	WriteFile(t, path, fmt.Sprintf("[api]\nemail=%s\nkey=%s\nsite=%s\n", email, key, site))
}

// Keep copies a file that may be there to the logs, if they are kept (-logs).
func Keep(t testing.TB, name, path string) {
	t.Helper()
	if *logs == "" {
		return
	}
	if data, err := os.ReadFile(path); err == nil {
		Must(t, os.MkdirAll(*logs, 0o700))
		Must(t, os.WriteFile(filepath.Join(*logs, name), data, 0o600))
	}
}
