//go:build unix

// Package systemdtest is the other end for tests: a socket as systemd's, real also where
// time is virtual.
package systemdtest

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Socket is what NOTIFY_SOCKET names.
type Socket struct {
	Path string
	t    testing.TB
	conn *net.UnixConn
}

// Listen makes a socket for a test. It must be made outside of a synctest bubble, and may
// be used within.
func Listen(t testing.TB) *Socket {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify-") // the folder of a test may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &Socket{path, t, conn}
}

// Read gives the lines of all messages that are there, one for each assignment, and does
// not wait.
func (s *Socket) Read() (lines []string) {
	s.t.Helper()
	raw, err := s.conn.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	err = raw.Control(func(fd uintptr) {
		for {
			n, _, err := syscall.Recvfrom(int(fd), buf, 0) // Go's sockets never wait
			if err == syscall.EINTR {
				continue
			}
			if err != nil {
				return
			}
			lines = append(lines, strings.Split(string(buf[:n]), "\n")...)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return lines
}
