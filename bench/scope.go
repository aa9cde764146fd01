//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// scope is a section or a case of one at work. It is what the helpers of the tests take
// for a test, since servers, proxies and recordings here are theirs: what they call is
// here, and all else of the interface is nil. Like a test it ends at Fatal, and then what
// was started is ended.
type scope struct {
	testing.TB
	*bench
	ctx  context.Context
	name string

	mu       sync.Mutex
	cleanups []func()
	failed   bool
	below    bool // a case of it failed
}

func newScope(ctx context.Context, b *bench, name string) *scope {
	return &scope{bench: b, ctx: ctx, name: name}
}

// attempt runs f to its end, and says whether it came there. What fails is said, and
// whoever comes next goes on.
func (t *scope) attempt(f func(*scope)) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer t.clean()
		f(t)
	}()
	<-done
	return !t.failed && !t.below
}

// try runs a case of its own. Those behind it run whatever becomes of it.
func (t *scope) try(name string, f func(*scope)) {
	if t.ctx.Err() == nil && !newScope(t.ctx, t.bench, t.name+", "+name).attempt(f) {
		t.below = true
	}
}

func (t *scope) clean() {
	for {
		t.mu.Lock()
		n := len(t.cleanups)
		if n == 0 {
			t.mu.Unlock()
			return
		}
		f := t.cleanups[n-1]
		t.cleanups = t.cleanups[:n-1]
		t.mu.Unlock()
		f()
	}
}

func (t *scope) Helper()                  {}
func (t *scope) Name() string             { return t.name }
func (t *scope) Context() context.Context { return t.ctx }

func (t *scope) Failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failed
}

func (t *scope) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

func (t *scope) Log(args ...any) {
	fmt.Fprintf(t.errors, "   %s: %s\n", t.name, strings.TrimSpace(fmt.Sprintln(args...)))
}

func (t *scope) Logf(format string, args ...any) { t.Log(fmt.Sprintf(format, args...)) }

func (t *scope) Error(args ...any) {
	t.mu.Lock()
	t.failed = true
	t.mu.Unlock()
	t.Log(append([]any{"FAILED:"}, args...)...)
}

func (t *scope) Errorf(format string, args ...any) { t.Error(fmt.Sprintf(format, args...)) }

func (t *scope) Fatal(args ...any) {
	t.Error(args...)
	runtime.Goexit()
}

func (t *scope) Fatalf(format string, args ...any) { t.Fatal(fmt.Sprintf(format, args...)) }

func (t *scope) TempDir() string {
	dir, err := os.MkdirTemp(t.dir, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// must ends the case on an error.
func (t *scope) must(err error) {
	if err != nil {
		t.Fatal(err)
	}
}

// patience ends what will never end. It is no measure of anything.
const patience = 10 * time.Minute

// wait waits until something is so, and looks again after each pause.
func (t *scope) wait(what string, pause time.Duration, is func() bool) {
	for deadline := time.Now().Add(patience); !is(); time.Sleep(pause) {
		if t.ctx.Err() != nil {
			t.Fatal("interrupted while waiting for", what)
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// byTurns measures each contestant once in each round, one after the other, and gives for
// each the figures of all rounds.
func (t *scope) byTurns(contestants ...func() float64) [][]float64 {
	figures := make([][]float64, len(contestants))
	for range t.rounds {
		for i, measure := range contestants {
			if measure == nil {
				continue
			}
			if t.ctx.Err() != nil {
				t.Fatal("interrupted")
			}
			runtime.GC() // what one has left over is not cleared away in the time of the next
			figures[i] = append(figures[i], measure())
		}
	}
	return figures
}

// report keeps a row of the table.
func (t *scope) report(rows ...row) {
	for _, r := range rows {
		t.bench.mu.Lock()
		t.rows = append(t.rows, r)
		t.bench.mu.Unlock()
	}
}

// sorted is a copy in order.
func sorted(list []float64) []float64 { return slices.Sorted(slices.Values(list)) }
