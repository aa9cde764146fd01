package fleet

import "os"

// process says which process of which machine a holder is, so that another one on the
// same machine can see that it is gone, and need not wait for its key to expire. All of
// it is empty where the system does not tell.
type process struct {
	// Boot is the machine's boot id: the same only on one machine, until it starts anew.
	Boot string `json:"boot,omitempty"`
	// Namespace is the PID namespace, without which a PID says nothing.
	Namespace string `json:"pid_namespace,omitempty"`
	// Start is when the process was started, in the kernel's ticks. Another process with
	// its PID has another.
	Start string `json:"start,omitempty"`
}

// near is true if it is a process of this machine.
func (h *Holder) near() bool {
	us := thisProcess()
	return us.Boot != "" && us.Namespace != "" && h.Start != "" && h.Boot == us.Boot && h.Namespace == us.Namespace
}

// isDead is true if the holder was a process of this machine that is no more. False means
// nothing: it may be anywhere.
func (h *Holder) isDead() bool {
	if !h.near() || h.PID == os.Getpid() && h.Start == thisProcess().Start { // another instance of this process
		return false
	}
	start, state, err := statOf(h.PID)
	if err != nil {
		return isGone(h.PID)
	}
	// A zombie is dead already, only nobody has asked how it died.
	return start != h.Start || state == "Z" || state == "X"
}
