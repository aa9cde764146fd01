package embedded

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// flock takes an exclusive lock on an open file, or fails at once. The byte locked is far
// behind the process id, which stays readable.
func flock(f *os.File) error {
	at := &windows.Overlapped{Offset: 1 << 20}
	return windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, at)
}

func isTaken(err error) bool { return errors.Is(err, windows.WSAEADDRINUSE) }
