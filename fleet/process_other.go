//go:build !linux

package fleet

import "errors"

func thisProcess() process { return process{} }

func statOf(int) (start, state string, err error) { return "", "", errors.ErrUnsupported }

func isGone(int) bool { return false }
