//go:build !windows

package embedded

import (
	"errors"
	"os"
	"syscall"
)

// flock takes an exclusive lock on an open file, or fails at once.
func flock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

func isTaken(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
