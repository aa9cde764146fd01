package tail

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode"
	"unicode/utf8"

	"zulip-nats/events"
)

// JSON prints a JSON object in each line: subject, seq, stored (RFC 3339, UTC), headers
// (but those of NATS itself) and event, which is the event with its members as they were
// sent, in one line. What a terminal could obey is escaped, as JSON allows it, so the line
// may be looked at. A body that is no JSON is a string.
type JSON struct{ W io.Writer }

func (j JSON) print(_ context.Context, _ *index, e *events.Event, _ any, _ error) error {
	headers := map[string]string{}
	for name, values := range events.Portable(e.Header) {
		if len(values) > 0 {
			headers[name] = values[0]
		}
	}
	var event any = json.RawMessage(e.Raw)
	if !json.Valid(e.Raw) {
		event = string(e.Raw)
	}
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false) // <, > and & stay as they were sent
	err := enc.Encode(struct {
		Subject string            `json:"subject"`
		Seq     uint64            `json:"seq"`
		Stored  time.Time         `json:"stored"`
		Headers map[string]string `json:"headers"`
		Event   any               `json:"event"`
	}{e.Subject, e.Seq, e.Stored.UTC(), headers, event})
	if err != nil {
		return err
	}
	_, err = j.W.Write(escaped(line.Bytes()))
	return err
}

// escaped writes what does not print as \uXXXX, but for the line break at the end. In JSON
// that can stand in strings only.
func escaped(line []byte) []byte {
	out := make([]byte, 0, len(line)+64)
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		switch {
		case r == utf8.RuneError && n == 1:
			out = append(out, `\ufffd`...)
		case r < utf8.RuneSelf && r != 0x7f || unicode.IsPrint(r):
			out = append(out, line[:n]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		line = line[n:]
	}
	return out
}

// Raw prints the bytes of each event as they were sent, and a line break behind them:
// whatever they do to a terminal.
type Raw struct{ W io.Writer }

func (r Raw) print(_ context.Context, _ *index, e *events.Event, _ any, _ error) error {
	_, err := r.W.Write(append(e.Raw[:len(e.Raw):len(e.Raw)], '\n'))
	return err
}
