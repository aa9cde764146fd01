//go:build !windows

package cli

import (
	"os/exec"
	"syscall"
)

// apart keeps from a process what a terminal sends to all that run on it, at Ctrl-C say.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
