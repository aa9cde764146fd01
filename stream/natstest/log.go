package natstest

import (
	"bytes"
	"sync"
	"testing"

	"github.com/rs/zerolog"
)

// Log is a logger into the test's own log. What is logged after the test, by a connection
// that is just closed, say, is dropped.
func Log(t testing.TB) zerolog.Logger {
	w := &logWriter{t: t}
	t.Cleanup(w.close)
	return zerolog.New(w)
}

type logWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Log(string(bytes.TrimSpace(p)))
	}
	return len(p), nil
}

func (w *logWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t = nil
}
