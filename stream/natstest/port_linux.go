package natstest

import (
	"syscall"
	"testing"
)

// FreePort is a TCP port of 127.0.0.1 that nobody is given who takes any free one, until
// the test ends. Without that, a client that waits for a stopped server to come back
// could meet the server of another test on its port.
//
// The port is bound and not listened on: connections are refused, and a server that names
// the port may listen on it, since both sides reuse addresses (SO_REUSEADDR, socket(7)).
func FreePort(t testing.TB) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return addr.(*syscall.SockaddrInet4).Port
}
