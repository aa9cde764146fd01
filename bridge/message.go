package bridge

import (
	"strconv"
	"strings"

	"zulip-nats/stream"
)

// headerValueLimit is where types and ops, which come from outside, are cut in headers.
const headerValueLimit = 128

// headerValue makes text from outside fit for a header. nats.go turns CR and LF into
// blanks and trims what it reads, so anything but printable ASCII, and the percent sign,
// is percent-encoded: what is read back must be what was sent.
func headerValue(s string) string {
	clean := len(s) <= headerValueLimit
	for i := 0; clean && i < len(s); i++ {
		clean = s[i] > ' ' && s[i] <= '~' && s[i] != '%'
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s) && b.Len() < headerValueLimit; i++ {
		if c := s[i]; c > ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else if b.Len()+3 <= headerValueLimit {
			const hex = "0123456789ABCDEF"
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			break
		}
	}
	return b.String()
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// header reads one header of a stored message; empty where it is absent.
func header(m *stream.Stored, key string) string {
	if v := m.Header[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// headerInt reads one header as a number; ok is false where it is absent or none.
func headerInt(m *stream.Stored, key string) (n int64, ok bool) {
	n, err := strconv.ParseInt(header(m, key), 10, 64)
	return n, err == nil
}
