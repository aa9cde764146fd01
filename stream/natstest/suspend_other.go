//go:build unix && !linux

package natstest

import (
	"os"
	"syscall"
)

// Suspend stops a child with SIGSTOP. On Linux it also waits until it stands still.
func Suspend(p *os.Process) { _ = p.Signal(syscall.SIGSTOP) }
