// Package recorded reads, for tests of any package, what of Zulip is kept in files with a
// line for each thing: answers of a real server, events, lists of names. It knows files,
// and not what is in them; it imports nothing of ours and has no flags.
package recorded

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Lines are those of a file, which is unpacked if its name ends in .gz. The test ends where
// it cannot be read, or has none.
func Lines(t testing.TB, file string) (all [][]byte) {
	t.Helper()
	f, err := os.Open(filepath.FromSlash(file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(file, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			t.Fatal(err)
		}
	}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 64<<20)
	for s.Scan() {
		all = append(all, bytes.Clone(s.Bytes()))
	}
	if err := s.Err(); err != nil || len(all) == 0 {
		t.Fatalf("%s: %d lines: %v", file, len(all), err)
	}
	return all
}
