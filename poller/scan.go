package poller

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"strconv"
	"sync"
	"unicode/utf8"
)

// scanner reads one JSON value, in as many pieces as it comes in. On the way it checks
// the grammar (RFC 8259) and picks up the members that the bridge needs: id, type and op
// of the value itself, the id of its message, and where that is. It exists because a library's decoder
// stops for good at the first bad byte, and because none takes both a value of any size
// in pieces and the bytes as sent.
//
// Two liberties: the bytes inside a string may be anything (control characters, NUL, what
// is no UTF-8), since they are carried and not interpreted; and nesting may be as deep as
// maxDepth, since a level costs one bit and no call.
type scanner struct {
	state   scanState
	inKey   bool   // the string being read is a key
	object  bool   // the innermost open container is an object
	keep    bool   // the token being read is wanted
	escaped bool   // the wanted string has escapes
	within  member // memberMessage or memberRecipient while that object, at the top, is open
	hex     uint8  // hex digits still due in a \u escape
	want    member // whose value comes next, or is being read
	literal string // what is still due of true, false or null
	depth   int    // open containers
	kinds   []uint64
	text    []byte // the beginning of a wanted token, if its end is in a later piece

	// What was found; of doubled keys the last counts.
	isObject bool
	id       int64
	idState  idState
	typ, op  string
	hasType  bool
	msgID    int64
	// Where it is: as the top says it, the message, and the recipient.
	top, msg, rec placed
	root          string // the value itself if it is plain and rootText is set
	rootText      bool   // set by the caller, for members of an answer: keep the value, a string's text or the bytes
	words         *interned
}

// placed is where something is, as far as one object says it.
type placed struct {
	kind    Recipient
	channel int64 // 0: not said
}

// recipientOf is what a word of Zulip's stands for. It says stream and private, and in newer
// places channel and direct.
func recipientOf(word []byte) Recipient {
	switch string(word) {
	case "stream", "channel":
		return RecipientChannel
	case "private", "direct":
		return RecipientDirect
	}
	return RecipientUnsaid
}

// said is what comes of the two: a direct message is in no channel, and what names a
// channel is in it.
func (p placed) said() (kind Recipient, channel int64) {
	switch {
	case p.kind == RecipientDirect:
		return RecipientDirect, 0
	case p.channel > 0:
		return RecipientChannel, p.channel
	}
	return p.kind, 0
}

// place says where an event of that type is, as far as it says so itself.
func (s *scanner) place(typ string) (kind Recipient, channel int64) {
	if typ == "message" {
		return s.msg.said()
	}
	if kind, channel = s.top.said(); kind == RecipientUnsaid {
		return s.rec.said()
	}
	return kind, channel
}

type scanState uint8

const (
	scanValue      scanState = iota // a value must begin
	scanFirstValue                  // behind '[': a value or ']'
	scanFirstKey                    // behind '{': a key or '}'
	scanKey                         // behind ',' in an object
	scanColon                       // behind a key
	scanNext                        // behind a value in a container: ',' or the container's end
	scanString
	scanEscape // behind a backslash
	scanHex
	scanMinus
	scanZero
	scanInt
	scanPoint // behind the point, no digit yet
	scanFraction
	scanE // behind the e, nothing yet
	scanESign
	scanExponent
	scanLiteral
	scanDone
)

// member names the members that are picked up.
type member uint8

const (
	memberNone member = iota
	memberID
	memberType
	memberOp
	memberMessage
	memberRecipient
	memberKind      // "message_type" at the top, "type" inside "message" and "recipient"
	memberChannel   // "stream_id" at the top and inside "message", "channel_id" inside "recipient"
	memberMessageID // "id" inside "message"
)

type idState uint8

const (
	idMissing idState = iota
	idGood
	idBad // there, but no whole number from 0 to 2^63-1
)

const (
	// maxDepth bounds the memory that nesting costs: 8 MiB. No event that is kept whole
	// comes near it.
	maxDepth = 64 << 20
	// maxWord bounds what is kept of a type or op; Zulip's longest is 29 bytes.
	maxWord = 64 << 10
)

var errDepth = errors.New("it is nested too deep")

// reset makes s ready for the next value. What it has allocated is kept.
func (s *scanner) reset() {
	*s = scanner{kinds: s.kinds[:0], text: s.text[:0], words: s.words}
}

// scan takes the next piece of the value and says how many of its bytes belong to the
// value. The value is complete when s.state is scanDone; a number at the top never is,
// since only the byte behind it can end it: n < len(b) then, see endNumber. An error is a
// breach of the grammar at b[n].
func (s *scanner) scan(b []byte) (n int, err error) {
	i, start := 0, 0 // start: where the wanted token begins in b
	for i < len(b) {
		c := b[i]
		switch s.state {
		case scanValue, scanFirstValue:
			switch {
			case c == '"':
				if s.depth <= 2 {
					s.begin(c)
				}
				s.inKey = false
				s.state = scanString
				i++
				start = i
				i = s.string(b, i, start)
			case c == '{':
				if s.depth == 0 {
					s.isObject = true
				}
				if s.want != memberNone {
					s.begin(c)
				}
				enter := memberNone
				if s.want >= memberMessage && s.want <= memberRecipient && s.depth == 1 {
					enter = s.want
				}
				if err := s.push(true); err != nil {
					return i, err
				}
				if s.depth == 2 {
					s.within = enter
				}
				s.want = memberNone
				s.state = scanFirstKey
				i++
				if i < len(b) && b[i] == '"' {
					i++
					start = i
					s.beginKey()
					i = s.string(b, i, start)
				}
			case c == '[':
				if s.want != memberNone {
					s.begin(c)
					s.want = memberNone
				}
				if err := s.push(false); err != nil {
					return i, err
				}
				s.state = scanFirstValue
				i++
			case c-'0' <= 9 || c == '-':
				if s.want != memberNone || s.depth == 0 {
					s.begin(c)
				}
				start = i
				switch c {
				case '-':
					s.state = scanMinus
				case '0':
					s.state = scanZero
				default:
					s.state = scanInt
				}
				i++
			case c == 't' || c == 'f' || c == 'n':
				if s.want != memberNone {
					s.begin(c)
					s.want = memberNone
				}
				literal := "null"
				switch c {
				case 't':
					literal = "true"
				case 'f':
					literal = "false"
				}
				if s.depth == 0 {
					s.root = literal
				}
				s.literal = literal[1:]
				s.state = scanLiteral
				i++
			case c == ']' && s.state == scanFirstValue:
				i++
				s.pop()
			case isSpace(c):
				i++
			default:
				return i, errors.New("a value was expected")
			}

		case scanFirstKey, scanKey:
			switch {
			case c == '"':
				i++
				start = i
				s.beginKey()
				i = s.string(b, i, start)
			case c == '}' && s.state == scanFirstKey:
				i++
				s.pop()
			case isSpace(c):
				i++
			default:
				return i, errors.New("a key was expected")
			}

		case scanColon:
			switch {
			case c == ':':
				i++
				s.state = scanValue
			case isSpace(c):
				i++
			default:
				return i, errors.New("a colon was expected")
			}

		case scanNext:
			switch {
			case c == ',':
				i++
				if s.object {
					s.state = scanKey
				} else {
					s.state = scanValue
				}
			case c == '}' && s.object, c == ']' && !s.object:
				i++
				s.pop()
			case isSpace(c):
				i++
			default:
				return i, errors.New("a comma or the end of an object or list was expected")
			}

		case scanString:
			i = s.string(b, i, start)

		case scanEscape:
			switch c {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				s.state = scanString
			case 'u':
				s.state, s.hex = scanHex, 4
			default:
				return i, errors.New("there is no such escape")
			}
			i++

		case scanHex:
			if !isHex(c) {
				return i, errors.New("a hex digit was expected")
			}
			i++
			if s.hex--; s.hex == 0 {
				s.state = scanString
			}

		case scanMinus:
			switch {
			case c == '0':
				s.state = scanZero
			case c-'1' <= 8:
				s.state = scanInt
			default:
				return i, errors.New("a digit was expected")
			}
			i++

		case scanZero, scanInt:
			if s.state == scanInt {
				for c-'0' <= 9 {
					if i++; i == len(b) {
						break
					}
					c = b[i]
				}
				if i == len(b) {
					continue
				}
			}
			switch c {
			case '.':
				s.state = scanPoint
				i++
			case 'e', 'E':
				s.state = scanE
				i++
			default:
				s.number(b, start, i)
			}

		case scanPoint, scanFraction:
			switch {
			case c-'0' <= 9:
				s.state = scanFraction
				i++
			case s.state == scanPoint:
				return i, errors.New("a digit was expected")
			case c == 'e' || c == 'E':
				s.state = scanE
				i++
			default:
				s.number(b, start, i)
			}

		case scanE, scanESign, scanExponent:
			switch {
			case c-'0' <= 9:
				s.state = scanExponent
				i++
			case s.state == scanE && (c == '+' || c == '-'):
				s.state = scanESign
				i++
			case s.state != scanExponent:
				return i, errors.New("a digit was expected")
			default:
				s.number(b, start, i)
			}

		case scanLiteral:
			if c != s.literal[0] {
				return i, errors.New("true, false or null was expected")
			}
			i++
			if s.literal = s.literal[1:]; s.literal == "" {
				s.ended()
			}

		case scanDone:
			return i, nil
		}
	}
	if s.keep {
		s.stash(b[min(start, len(b)):])
	}
	return i, nil
}

// string reads on in a string from b[i] and returns where it stopped: behind its end, at
// an escape's second byte, or at len(b). start is where the string's own bytes begin in
// b.
func (s *scanner) string(b []byte, i, start int) int {
	for {
		i = stringStop(b, i)
		if i == len(b) {
			return i
		}
		if b[i] != '"' {
			// An escape. The common ones are done with here; what is not whole or not
			// right is left to scan.
			s.escaped = true
			i++
			if i < len(b) && b[i] != 'u' && isEscape(b[i]) {
				i++
				continue
			}
			s.state = scanEscape
			return i
		}
		if s.keep {
			s.word(b[start:i])
		}
		i++
		if !s.inKey {
			s.ended()
			// The commonest thing behind a value is a comma with the next key: taken here
			// to save two turns of the loop.
			if s.state == scanNext && s.object && i+1 < len(b) && b[i] == ',' && b[i+1] == '"' {
				s.state = scanKey
				return i + 1
			}
			return i
		}
		if i < len(b) && b[i] == ':' {
			s.state = scanValue
			return i + 1
		}
		s.state = scanColon
		return i
	}
}

// begin is told the first byte of a value that may be wanted.
func (s *scanner) begin(c byte) {
	digit := c-'0' <= 9
	switch s.want {
	case memberNone:
		s.keep = s.rootText && s.depth == 0
	case memberID:
		s.idState = idBad // until the number is seen to be one
		s.keep = digit
	case memberType:
		s.typ, s.hasType = "", false
		s.keep = c == '"'
	case memberOp:
		s.op = ""
		s.keep = c == '"'
	case memberMessage:
		s.msgID, s.msg = 0, placed{}
	case memberRecipient:
		s.rec = placed{}
	case memberMessageID:
		s.msgID = 0
		s.keep = digit
	case memberKind:
		s.here().kind = RecipientUnsaid
		s.keep = c == '"'
	case memberChannel:
		s.here().channel = 0
		s.keep = digit
	}
	s.text, s.escaped = s.text[:0], false
}

// here is what the object whose member is read, at the top or one of its members, says of
// its place.
func (s *scanner) here() *placed {
	switch s.within {
	case memberMessage:
		return &s.msg
	case memberRecipient:
		return &s.rec
	}
	return &s.top
}

// beginKey is called behind the quote that begins a key.
func (s *scanner) beginKey() {
	s.inKey = true
	s.state = scanString
	s.want = memberNone
	s.keep = s.depth == 1 || s.depth == 2 && s.within != memberNone
	if s.keep {
		s.text, s.escaped = s.text[:0], false
	}
}

// stash keeps the beginning of a wanted token whose end has not come yet.
func (s *scanner) stash(b []byte) {
	// Beyond the limit the token can be nothing that we look for; one byte more than the
	// limit remembers that.
	s.text = append(s.text, b[:min(len(b), maxWord+1-len(s.text))]...)
}

// word is given the rest of a wanted string, up to its closing quote.
func (s *scanner) word(rest []byte) {
	s.keep = false
	raw := rest
	if len(s.text) > 0 {
		s.stash(rest)
		raw = s.text
	}
	if s.inKey {
		s.want = s.member(raw)
		return
	}
	if s.want == memberKind {
		if s.escaped && len(raw) < maxWord {
			raw = appendUnquoted(nil, raw)
		}
		s.here().kind = recipientOf(raw)
		return
	}
	long := len(raw) > maxWord
	var w string
	if !long {
		w = s.words.get(raw, s.escaped)
	}
	switch s.want {
	case memberType:
		s.typ, s.hasType = w, !long
	case memberOp:
		s.op = w
	default:
		s.root = w
	}
}

// member says which member a key names. A key may be written with escapes.
func (s *scanner) member(key []byte) member {
	if s.escaped {
		if len(key) > 6*len("message_type") {
			return memberNone
		}
		key = appendUnquoted(make([]byte, 0, 6*len("message_type")), key)
	}
	switch s.within {
	case memberMessage:
		switch string(key) {
		case "id":
			return memberMessageID
		case "type":
			return memberKind
		case "stream_id":
			return memberChannel
		}
		return memberNone
	case memberRecipient:
		switch string(key) {
		case "type":
			return memberKind
		case "channel_id":
			return memberChannel
		}
		return memberNone
	}
	switch string(key) {
	case "id":
		return memberID
	case "type":
		return memberType
	case "op":
		return memberOp
	case "message":
		return memberMessage
	case "recipient":
		return memberRecipient
	case "message_type":
		return memberKind
	case "stream_id":
		return memberChannel
	}
	return memberNone
}

// number ends a number in front of b[end].
func (s *scanner) number(b []byte, start, end int) {
	if s.keep {
		raw := b[start:end]
		if len(s.text) > 0 {
			s.stash(raw)
			raw = s.text
		}
		if s.want == memberNone {
			s.root = string(raw)
		} else if v, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
			switch s.want {
			case memberID:
				s.id, s.idState = v, idGood
			case memberChannel:
				s.here().channel = v
			default:
				s.msgID = v
			}
		}
	}
	s.ended()
}

// endNumber ends a number at the top at the end of all bytes, and reports whether there
// was one to end.
func (s *scanner) endNumber() bool {
	if s.depth > 0 {
		return false
	}
	switch s.state {
	case scanZero, scanInt, scanFraction, scanExponent:
		s.state = scanDone
		return true
	}
	return false
}

// ended is called behind each value.
func (s *scanner) ended() {
	s.keep, s.want = false, memberNone
	if s.depth == 0 {
		s.state = scanDone
	} else {
		s.state = scanNext
	}
}

func (s *scanner) push(object bool) error {
	if s.depth > 0 {
		i, bit := (s.depth-1)>>6, uint64(1)<<((s.depth-1)&63)
		if i == len(s.kinds) {
			if s.depth >= maxDepth {
				return errDepth
			}
			s.kinds = append(s.kinds, 0)
		}
		if s.object {
			s.kinds[i] |= bit
		} else {
			s.kinds[i] &^= bit
		}
	}
	s.depth++
	s.object = object
	return nil
}

func (s *scanner) pop() {
	s.depth--
	if s.depth > 0 {
		s.object = s.kinds[(s.depth-1)>>6]>>((s.depth-1)&63)&1 == 1
	}
	if s.depth <= 1 {
		s.within = memberNone
	}
	s.ended()
}

// stringStop returns the place of the first quote or backslash in b[i:], or len(b). It
// looks at eight bytes at a time: a byte equals x where the byte of v^xxxxxxxx is zero,
// and (w-0x01..)&^w&0x80.. has its lowest set bit in the first zero byte of w.
func stringStop(b []byte, i int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; i+8 <= len(b); i += 8 {
		v := binary.LittleEndian.Uint64(b[i:])
		q, e := v^ones*'"', v^ones*'\\'
		if m := ((q-ones)&^q | (e-ones)&^e) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for ; i < len(b); i++ {
		if b[i] == '"' || b[i] == '\\' {
			return i
		}
	}
	return i
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

func isHex(c byte) bool { return c-'0' <= 9 || c|0x20-'a' <= 5 }

func isEscape(c byte) bool {
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't', 'u':
		return true
	}
	return false
}

// interned keeps the types and ops seen, so that the same few strings are not made a million
// times.
type interned struct{ seen map[string]string }

// commonWords are those that all realms share: the types of events, and most ops.
var commonWords = sync.OnceValue(func() map[string]string {
	m := map[string]string{}
	for _, word := range append([]string{"add", "remove", "update", "create", "delete", "start", "stop", "peer_add",
		"peer_remove", "add_members", "remove_members", "add_subgroups", "remove_subgroups"}, EventTypes()...) {
		m[word] = word
	}
	return m
})

// get returns the text of the string whose bytes between the quotes are raw.
func (w *interned) get(raw []byte, escaped bool) string {
	if escaped {
		raw = appendUnquoted(make([]byte, 0, len(raw)), raw)
	}
	if t, ok := commonWords()[string(raw)]; ok {
		return t
	}
	if t, ok := w.seen[string(raw)]; ok {
		return t
	}
	t := string(raw)
	if len(t) <= 64 && len(w.seen) < 256 {
		if w.seen == nil {
			w.seen = make(map[string]string)
		}
		w.seen[t] = t
	}
	return t
}

// appendUnquoted appends to dst what the bytes between the quotes of a string, already
// known to be well-formed, stand for. Half a surrogate pair becomes U+FFFD as in
// encoding/json; bytes that are no UTF-8 stay as they are.
func appendUnquoted(dst, raw []byte) []byte {
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			dst = append(dst, raw[i])
			continue
		}
		i++
		switch raw[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(raw[i+1:])
			i += 4
			if r&^0x3FF == 0xD800 && i+6 < len(raw) && raw[i+1] == '\\' && raw[i+2] == 'u' {
				if low := hex4(raw[i+3:]); low&^0x3FF == 0xDC00 {
					r = 0x10000 + (r&0x3FF)<<10 + low&0x3FF
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default: // " \ /
			dst = append(dst, raw[i])
		}
	}
	return dst
}

// hex4 reads four hex digits.
func hex4(b []byte) (r rune) {
	for _, c := range b[:4] {
		if c > '9' {
			c = c&0xF + 9
		}
		r = r<<4 | rune(c&0xF)
	}
	return r
}
