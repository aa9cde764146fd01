package bridge

import (
	"strconv"
	"strings"

	"zulip-nats/stream"
)

// Headers of what the bridge stores (design, section 4). Consumers may rely on them.
const (
	HeaderQueueID     = "Zulip-Queue-Id"
	HeaderEventID     = "Zulip-Event-Id"
	HeaderPrevEventID = "Zulip-Prev-Event-Id" // the id before this one in the queue: ids may skip, and this proves that nothing is missing
	HeaderEventType   = "Zulip-Event-Type"
	HeaderEventOp     = "Zulip-Event-Op"
	HeaderOrigin      = "Zulip-Origin" // live or backfill
	HeaderMessageID   = "Zulip-Message-Id"
	HeaderWriter      = "Bridge-Writer"   // the instance that stored it
	HeaderPosition    = "Bridge-Position" // records and refilled messages: the id to poll from
	HeaderRecord      = "Bridge-Record"   // queue, gap-opened, gap-closed, rejected, skipped
	HeaderNext        = "Bridge-Next"     // queue records: what follows, poll or refill
	HeaderObject      = "Zulip-Object"    // claim check: <bucket>/<object name>; the body is in the object store
	HeaderSize        = "Zulip-Object-Size"
	HeaderDigest      = "Zulip-Object-Digest"
)

// The values of HeaderRecord.
const (
	recordQueue     = "queue"
	recordGapOpened = "gap-opened"
	recordGapClosed = "gap-closed"
	recordRejected  = "rejected"
	recordSkipped   = "skipped"
)

const (
	originLive     = "live"
	originBackfill = "backfill"
	nextPoll       = "poll"
	nextRefill     = "refill"
)

// headerValueLimit is where types and ops, which come from outside, are cut in headers.
const headerValueLimit = 128

// headerValue makes text from outside fit for a header. nats.go turns CR and LF into blanks and trims what it reads, so anything but
// printable ASCII, and the percent sign, is percent-encoded: what is read back must be what was sent.
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
