//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// peers are other programs that do the same job, on the same server in the same run: a
// backlog of 20,000 events of 500 bytes, and one event at a time, measured as in drain and
// in live. They are what one would write today: the smallest relay in Go, a Python program
// on what PyPI has for the two sides, and a Node program on what npm has (folder peers).
// None of them keeps the promise of ours: they lose what happens while they do not run.
//
// Python and Node are taken from this machine, and their packages are put into a temporary
// folder. Where one is missing, its case says so and fails, and the others go on.
func peers(t *scope) {
	s := newStore(t, "R1 file")
	ours := newLiveSide(t, s, "acme")
	for _, peer := range []struct {
		name string
		get  func(t *scope) (name string, args []string) // nil: it is there
	}{
		{"smallest relay", nil},
		{"Python, zulip and nats-py", func(t *scope) (string, []string) {
			return pythonPeer(t), []string{filepath.Join(t.root, "bench/peers/relay.py")}
		}},
		{"Node, zulip-js and nats.js", func(t *scope) (string, []string) { return "node", []string{nodePeer(t)} }},
	} {
		t.try(peer.name, func(t *scope) {
			theirs := newLiveRelay(t, s)
			defer func() { t.must(s.js.DeleteStream(t.Context(), theirs.stream)) }()
			if peer.get != nil {
				name, args := peer.get(t)
				theirs.start = func() *process {
					theirs.zulip = newZulip(t)
					return t.start(nil, name, append(slices.Clone(args), theirs.zulip.rc, s.url, theirs.subject)...)
				}
			}
			n := t.sized(20_000, 20_000)
			rates := t.byTurns(func() float64 { return ours.drain(n) }, func() float64 { return theirs.drain(n) })
			t.report(compared("peers", "a backlog of 500 B", "events/s", "", rates[0], peer.name, rates[1], nil))
			a, b := byTurns(t, ours, theirs, t.sized(3*batch, 25*batch))
			reportDelays(t, "peers", "500 B, one at a time", a, peer.name, b, nil)
		})
	}
}

// pythonPeer makes a Python with what relay.py needs, and gives its path.
func pythonPeer(t *scope) string {
	dir := filepath.Join(t.TempDir(), "python")
	if text, err := exec.CommandContext(t.Context(), "python3", "-m", "venv", dir).CombinedOutput(); err != nil {
		t.Fatalf("this needs python3 with its module venv (Debian: python3-venv): %v\n%s", err, text)
	}
	python := filepath.Join(dir, "bin/python")
	text, err := exec.CommandContext(t.Context(), python, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check",
		"-r", filepath.Join(t.root, "bench/peers/requirements.txt")).CombinedOutput()
	if err != nil {
		t.Fatalf("pip install of bench/peers/requirements.txt: %v\n%s", err, text)
	}
	return python
}

// nodePeer makes a folder with relay.mjs and what it needs, and gives the script's path.
func nodePeer(t *scope) string {
	dir := t.TempDir()
	for _, name := range []string{"package.json", "relay.mjs"} {
		text, err := os.ReadFile(filepath.Join(t.root, "bench/peers", name))
		t.must(err)
		t.must(os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	install := exec.CommandContext(t.Context(), "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock",
		"--loglevel=error")
	install.Dir = dir
	if text, err := install.CombinedOutput(); err != nil {
		t.Fatalf("this needs Node with npm, and what bench/peers/package.json names: %v\n%s", err, text)
	}
	return filepath.Join(dir, "relay.mjs")
}
