package natstest

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Suspend stops a child with SIGSTOP and returns when it stands still. The signal alone is
// no more than a wish: the kernel tells one thread of the child, and the others go on until
// that one has had its turn, which takes a while on a busy machine (signal(7),
// waitid(2)). A child that has ended is left alone.
func Suspend(p *os.Process) {
	if p.Signal(syscall.SIGSTOP) != nil {
		return
	}
	for {
		var stopped unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.Pid, &stopped, unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || stopped.Signo != 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
