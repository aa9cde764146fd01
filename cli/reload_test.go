package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/fleet"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// reloading is a process that does nothing but read its settings again: read is called for
// each reload.
func reloading(t *testing.T, files []string, read func() (*Config, error)) *process {
	t.Helper()
	c := defaults()
	c.Realms = nil
	_, level := newLevelLog(os.Stderr, LogAuto, zerolog.Disabled)
	p := &process{c: &c, log: zerolog.Nop(), level: level, fleet: fleet.New(zerolog.Nop()), read: read,
		files: func() []string { return files }}
	t.Cleanup(p.reloads(t.Context()))
	return p
}

// within waits for something that has to come.
func within(limit time.Duration, is func() bool) bool {
	for end := time.Now().Add(limit); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// A file is changed once more while the settings are read, by whoever is faster than the
// reading. The last change is the one that counts in the end.
func TestReloadChangedWhileRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zulip-nats.ini")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	var newest atomic.Value
	reloading(t, []string{path}, func() (*Config, error) {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		newest.Store(string(text))
		if string(text) == "2" {
			write("3")
		}
		c := defaults()
		c.Realms = nil
		return &c, nil
	})
	write("2")
	if !within(5*time.Second, func() bool { return newest.Load() == "3" }) {
		t.Errorf("the newest settings that were read are %v, and the file has 3", newest.Load())
	}
}

// More happens in the folder than the system remembers, while a reload takes its time. That
// is told as an error by the watcher, which waits until somebody reads it: for ever, where
// nobody does. A later change of the file has to be seen all the same.
func TestReloadOverflow(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "zulip-nats.ini")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	most, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(most), &n); err != nil {
		t.Fatal(err)
	}
	reading, goOn := make(chan struct{}, 1), make(chan struct{})
	var reads atomic.Int32
	reloading(t, []string{path}, func() (*Config, error) {
		if reads.Add(1) == 1 {
			reading <- struct{}{}
			<-goOn
		}
		c := defaults()
		c.Realms = nil
		return &c, nil
	})
	write("2")
	<-reading
	other := filepath.Join(folder, "log")
	for i := range n + 10000 { // two names in turn: equal events that follow each other are one
		if err := os.WriteFile(fmt.Sprintf("%s%d", other, i%2), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	close(goOn)
	for i := range 5 {
		time.Sleep(time.Second)
		write(fmt.Sprint(100 + i))
	}
	if !within(5*time.Second, func() bool { return reads.Load() > 1 }) {
		t.Error("no change of the file is seen any more")
	}
}

// The file is a link to one in another folder, as by a tool that keeps all settings in one
// place: what is written there is a change of the file.
func TestReloadLinkedFile(t *testing.T) {
	folder, elsewhere := t.TempDir(), t.TempDir()
	path, target := filepath.Join(folder, "zulip-nats.ini"), filepath.Join(elsewhere, "acme.ini")
	if err := os.WriteFile(target, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	var reads atomic.Int32
	reloading(t, []string{path}, func() (*Config, error) {
		reads.Add(1)
		c := defaults()
		c.Realms = nil
		return &c, nil
	})
	if err := os.WriteFile(target, []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !within(5*time.Second, func() bool { return reads.Load() > 0 }) {
		t.Error("a change behind a link is not seen")
	}
}

// The folder goes and comes back, as by a new mount.
func TestReloadFolderAgain(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "etc")
	path := filepath.Join(folder, "zulip-nats.ini")
	write := func(text string) {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	var newest atomic.Value
	reloading(t, []string{path}, func() (*Config, error) {
		text, err := os.ReadFile(path)
		newest.Store(string(text))
		if err != nil {
			return nil, err
		}
		c := defaults()
		c.Realms = nil
		return &c, nil
	})
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	write("2")
	time.Sleep(time.Second)
	write("3")
	if !within(5*time.Second, func() bool { return newest.Load() == "3" }) {
		t.Errorf("the newest settings that were read are %q, and the file has 3", newest.Load())
	}
}

// Settings are read again at the moment when the first realm that Zulip lets in makes the
// connection. Run it with -race: the two share p.c.
func TestReloadBesideConnect(t *testing.T) {
	for range 20 {
		c := defaults()
		c.NATS.URL, c.NoLease = fmt.Sprintf("nats://127.0.0.1:%d", natstest.FreePort(t)), true
		_, level := newLevelLog(os.Stderr, LogAuto, zerolog.Disabled)
		ctx, end := context.WithCancelCause(t.Context())
		p := &process{c: &c, log: zerolog.Nop(), level: level, fleet: fleet.New(zerolog.Nop()), start: ctx, working: ctx, end: end,
			writer: "test-1-abc", files: func() []string { return nil },
			read: func() (*Config, error) {
				again := defaults()
				again.Realms, again.NATS = nil, stream.ConnectConfig{URL: "nats://127.0.0.1:1"}
				return &again, nil
			}}
		var both sync.WaitGroup
		both.Go(p.reload)
		both.Go(func() { _, _ = p.connection() })
		both.Wait()
		for _, f := range slices.Backward(p.undo) {
			f()
		}
		end(nil)
	}
}
