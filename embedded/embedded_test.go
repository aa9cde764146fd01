package embedded

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"zulip-nats/stream/natstest"
)

func connect(t *testing.T, s *Server) jetstream.JetStream {
	t.Helper()
	return natstest.JetStream(t, natstest.Connect(t, s.URL()))
}

func TestStreamsSurviveARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "on", "the", "way")
	s, err := Start(Options{Dir: dir, SyncAlways: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown()
	if !strings.HasPrefix(s.URL(), "nats://127.0.0.1:") || s.Dir() != dir {
		t.Fatalf("listens on %s with %s", s.URL(), s.Dir())
	}
	js := connect(t, s)
	if _, err := js.CreateStream(t.Context(),
		jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s.one", []byte("still here")); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	s.Shutdown() // twice is harmless

	s, err = Start(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown()
	stream, err := connect(t, s).Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetMsg(t.Context(), 1)
	if err != nil || string(m.Data) != "still here" {
		t.Fatalf("read back %v, %v", m, err)
	}
}

func TestFolderInUse(t *testing.T) {
	dir := t.TempDir()
	s, err := Start(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown()
	_, err = Start(Options{Dir: dir})
	if !errors.Is(err, ErrDirInUse) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("a second server in the folder: %v", err)
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_, err = Start(Options{Dir: dir, Port: l.Addr().(*net.TCPAddr).Port})
	if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), port) {
		t.Fatalf("a port that is taken: %v", err)
	}
	// The attempt has let the folder go.
	s, err := Start(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
}

func TestFolderThatIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file, filepath.Join(file, "below")} {
		if _, err := Start(Options{Dir: dir}); !errors.Is(err, ErrDir) {
			t.Errorf("Start in %q: %v", dir, err)
		}
	}
}

// What the server refuses while it starts comes back as an error, and ends nothing.
func TestServerRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "jetstream"), []byte("a file where its folder should be"),
		0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "JetStream") {
		t.Fatalf("Start: %v", err)
	}
}

// TestFullDisk: what a full disk means is said once, however often the server tries.
func TestFullDisk(t *testing.T) {
	var out bytes.Buffer
	l := &logger{log: zerolog.New(&out).Level(zerolog.InfoLevel)}
	for range 3 {
		l.Errorf("JetStream failed to store a msg on stream '%s': write %s: %v", "S", "1.blk", syscall.ENOSPC)
	}
	l.Errorf("another error")
	if n, s := strings.Count(out.String(), "failed to store"), strings.Count(out.String(), "start zulip-nats again"); n != 1 || s != 1 ||
		!strings.Contains(out.String(), "another error") {
		t.Errorf("want each once, and the other error:\n%s", out.String())
	}
}
