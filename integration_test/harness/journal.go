//go:build unix

package harness

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// secrets are what may be in no line of any log.
var secrets struct {
	sync.Mutex
	all []string
}

// KeepSecret makes every journal fail its test where this shows.
func KeepSecret(s string) {
	secrets.Lock()
	defer secrets.Unlock()
	if !slices.Contains(secrets.all, s) {
		secrets.all = append(secrets.all, s)
	}
}

// Journal is what programs have written, line by line; one may belong to several starts.
// It is the one place where every log comes through: a line with a secret, a panic or a
// data race fails the test.
type Journal struct {
	t    testing.TB
	file *os.File // nil unless logs are kept

	mu   sync.Mutex
	text []byte // whole lines
	rest []byte // the line that is not whole yet
}

// NewJournal makes a journal, whose last lines are shown if the test fails.
func NewJournal(t testing.TB, name string) *Journal {
	t.Helper()
	j := &Journal{t: t}
	if *logs != "" {
		Must(t, os.MkdirAll(*logs, 0o700))
		f, err := os.CreateTemp(*logs, strings.ReplaceAll(t.Name(), "/", "_")+"-"+name+"-*.log")
		Must(t, err)
		t.Cleanup(func() { f.Close() })
		j.file = f
	}
	t.Cleanup(func() {
		if t.Failed() {
			all := j.Lines()
			t.Logf("the log of %s, %d lines, the last of them:\n%s", name, len(all),
				strings.Join(all[max(0, len(all)-50):], "\n"))
		}
	})
	return j
}

func (j *Journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		j.file.Write(b)
	}
	j.rest = append(j.rest, b...)
	end := bytes.LastIndexByte(j.rest, '\n') + 1
	whole := j.rest[:end]
	secrets.Lock()
	for _, s := range secrets.all {
		if bytes.Contains(whole, []byte(s)) {
			j.t.Errorf("a secret is in the log: %s", bytes.ReplaceAll(whole, []byte(s), []byte("<SECRET>")))
		}
	}
	secrets.Unlock()
	for _, s := range []string{"panic:", "fatal error:", "DATA RACE"} {
		if bytes.Contains(whole, []byte(s)) {
			j.t.Errorf("the program broke down: %s", s)
		}
	}
	j.text = append(j.text, whole...)
	j.rest = j.rest[end:]
	return len(b), nil
}

// size is how much was written so far.
func (j *Journal) size() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.text)
}

// Lines are the whole lines so far that have all of these words, whatever their case.
func (j *Journal) Lines(words ...string) (found []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range bytes.Lines(j.text) {
		lower := bytes.ToLower(line)
		missing := func(word string) bool { return !bytes.Contains(lower, []byte(strings.ToLower(word))) }
		if !slices.ContainsFunc(words, missing) {
			found = append(found, string(bytes.TrimSuffix(line, []byte("\n"))))
		}
	}
	return found
}

// Says is whether one line has all of these words.
func (j *Journal) Says(words ...string) bool { return len(j.Lines(words...)) > 0 }

// Expect waits for a line with all of these words, puts it in the test's own log, since
// it is what an operator reads, and returns it.
func (j *Journal) Expect(words ...string) string {
	j.t.Helper()
	return j.ExpectAgain(0, words...)
}

// ExpectAgain is Expect for one line more than there were.
func (j *Journal) ExpectAgain(before int, words ...string) string {
	j.t.Helper()
	Eventually(j.t, fmt.Sprintf("line %d of the log with %q", before+1, words),
		func() bool { return len(j.Lines(words...)) > before })
	line := j.Lines(words...)[before]
	j.t.Log(line)
	return line
}
