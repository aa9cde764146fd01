package zulipsim

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// object writes a JSON object in the order in which its members are added, compactly and
// with raw UTF-8, as Zulip's orjson does.
type object struct{ b []byte }

func (o *object) key(k string) {
	if len(o.b) == 0 {
		o.b = append(o.b, '{')
	} else {
		o.b = append(o.b, ',')
	}
	o.b = appendString(o.b, k)
	o.b = append(o.b, ':')
}

func (o *object) str(k, v string) {
	o.key(k)
	o.b = appendString(o.b, v)
}

func (o *object) int(k string, v int64) {
	o.key(k)
	o.b = strconv.AppendInt(o.b, v, 10)
}

func (o *object) bool(k string, v bool) {
	o.key(k)
	o.b = strconv.AppendBool(o.b, v)
}

// raw adds a member whose value is JSON already.
func (o *object) raw(k, v string) {
	o.key(k)
	o.b = append(o.b, v...)
}

// json adds any value that encoding/json can write.
func (o *object) json(k string, v any) {
	o.key(k)
	o.b = append(o.b, encode(v)...)
}

// members adds those of another object.
func (o *object) members(other *object) {
	switch {
	case len(other.b) == 0:
	case len(o.b) == 0:
		o.b = append(o.b, other.b...)
	default:
		o.b = append(append(o.b, ','), other.b[1:]...)
	}
}

func (o *object) end() string {
	if len(o.b) == 0 {
		return "{}"
	}
	return string(o.b) + "}"
}

// encode is json.Marshal without the escaping that is meant for HTML. In place of a value
// that cannot be encoded, which only a test can have made, stands the reason.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return appendString(nil, err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// appendString appends s as a JSON string. Only quote, backslash and control characters
// are escaped; bytes that are no UTF-8 become U+FFFD, since Zulip cannot send them.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				b = append(b, s[start:i]...)
				b = append(b, "\uFFFD"...)
				start = i + 1
			}
			i += n
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		default:
			b = append(b, '\\', 'u', '0', '0', "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
