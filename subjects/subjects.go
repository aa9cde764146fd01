// Package subjects says where on the bus things go: it turns an organization (a realm)
// and an event type into a NATS subject, and nothing else. It is pure: no network, no
// clock, no state, and it imports nothing of ours.
//
// The subject space is the contract with every consumer (design, section 4). An event is
// on a subject of its type or, by place, on one that says besides where that is what it
// is about:
//
//	zulip.<realm>.<type>                 one Zulip event, the bytes as Zulip sent them     zulip.chat.message
//	zulip.<realm>.<type>.channel.<id>    by place: in the channel with that id             zulip.chat.message.channel.7
//	zulip.<realm>.<type>.direct          by place: direct messages                         zulip.chat.message.direct
//	zulip.<realm>.<type>.none            by place: neither                                 zulip.chat.presence.none
//	zulip.<realm>.bridge.<kind>          a record that the bridge itself wrote             zulip.chat.bridge.gap
//
// So zulip.<realm>.* is Zulip's own events, all of them and only them (by place:
// zulip.<realm>.*.channel.*, .*.direct and .*.none); zulip.<realm>.bridge.> is what the
// bridge says about the stream; and zulip.<realm>.> is everything, which is what the
// realm's stream, ZULIP_<realm>, collects.
//
// That stays true only while <realm> and <type> are one token each. NATS gives a meaning
// to '.', '*', '>' and blanks in a subject, so one foreign character could move an event
// to where nobody listens, or make it pose as a record. Hence two rules. What comes from
// outside is either a token of [A-Za-z0-9_-] or it is refused; nothing is cleaned up,
// since two names could be cleaned into one. And the type "bridge" is refused although it
// is a token: it would stand where the records stand.
package subjects

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Limits on the length of a token, in bytes. Zulip's own names are far below them: a
// realm's string_id has at most 40 characters (zulip/zulip, zerver/models/realms.py), the
// longest event type known has 28. They leave room for invented names and keep subjects
// short, since a server holds an index entry for each one.
const (
	maxRealm = 64
	maxType  = 128
)

// root is the first token of every subject, and reserved the token that stands where an
// event type would, on records.
const (
	root     = "zulip."
	reserved = "bridge"
)

// The kinds of record, for [Realm.Record]. Consumers may see further kinds in later
// versions.
const (
	Queue    = "queue"    // the queue on Zulip that we follow
	Gap      = "gap"      // a queue was lost: opened, and later closed
	Rejected = "rejected" // an event that cannot be carried as it is
	Skipped  = "skipped"  // a message event whose message the stream holds already
	Erased   = "erased"   // what was erased, because it was deleted at Zulip
	Excluded = "excluded" // events that the bridge was told to leave out

	// The state of the organization: the marks around its pieces, for which see
	// [Realm.State]. The marks have no subject that [Realm.States] covers.
	StateBegin = "state-begin"
	StateEnd   = "state-end"
)

// state is the token below which the pieces of the state are.
const state = "state"

// Layout is how subjects of events are made. A stream has one, from its beginning on.
type Layout uint8

const (
	ByType  Layout = iota // zulip.<realm>.<type>
	ByPlace               // zulip.<realm>.<type>.<place>
)

// The names of layouts.
var layouts = [...]string{ByType: "by-type", ByPlace: "by-place"}

// String gives the layout's name: "by-type" or "by-place".
func (l Layout) String() string { return layouts[l] }

// ParseLayout takes a layout's name. The error is a sentence that says which there are.
func ParseLayout(s string) (Layout, error) {
	for l, name := range layouts {
		if s == name {
			return Layout(l), nil
		}
	}
	return ByType, fmt.Errorf("%s is no layout of subjects: give by-type or by-place", quote(s))
}

// LayoutOf gives the layout that made the subject of an event: one of more than three
// tokens is by place. Of a record's it says nothing.
func LayoutOf(subject string) Layout {
	if strings.Count(subject, ".") > 2 {
		return ByPlace
	}
	return ByType
}

// PlaceOf gives the place that the subject of an event names; [Nowhere] too where it names
// none. Of a record's it says nothing.
func PlaceOf(subject string) Place {
	token := strings.Split(subject, ".")
	switch {
	case len(token) == 5 && token[3] == "channel":
		n, _ := strconv.ParseInt(token[4], 10, 64)
		return Place(max(n, 0))
	case len(token) == 4 && token[3] == Direct.String():
		return Direct
	}
	return Nowhere
}

// Place is where that is what an event is about: the id of a channel, which is above 0,
// or one of two other values.
type Place int64

const (
	Nowhere Place = 0  // in no channel, or in one that nobody names
	Direct  Place = -1 // among people
)

func (p Place) String() string {
	switch {
	case p > 0:
		return "channel." + strconv.FormatInt(int64(p), 10)
	case p == Direct:
		return "direct"
	}
	return "none"
}

// Realm is one Zulip organization as subjects name it: a token that has been checked, and
// the layout. The zero value is no realm: its methods give empty strings, which no NATS
// server accepts, and [Realm.Event] gives an error. Two realms are equal (==) if their
// tokens and layouts are.
type Realm struct {
	prefix string // "zulip.<realm>.", so that an event's subject is one concatenation
	layout Layout
}

// By gives the same realm with another layout; [ParseRealm] gives it [ByType].
func (r Realm) By(l Layout) Realm {
	r.layout = l
	return r
}

// Layout gives the realm's layout.
func (r Realm) Layout() Layout { return r.layout }

// ParseRealm takes a realm's name as an operator wrote it. It must be 1 to 64 characters
// of A-Z, a-z, 0-9, '_' and '-'; the case counts. The error is a sentence that says so.
func ParseRealm(s string) (Realm, error) {
	switch {
	case s == "":
		return Realm{}, errors.New("the realm's name is empty: give 1 to 64 letters, digits, '_' or '-'")
	case len(s) > maxRealm:
		return Realm{}, fmt.Errorf("the realm's name %s is %d bytes long: give at most %d", quote(s), len(s), maxRealm)
	case !isToken(s):
		return Realm{}, fmt.Errorf("the realm's name %s cannot be part of a NATS subject: use only A-Z, a-z, 0-9, "+
			"'_' and '-'", quote(s))
	}
	return Realm{prefix: root + s + "."}, nil
}

// RealmFromSite derives a realm's name from the address of its Zulip server, for when
// nobody chose one. The site may be a URL or as people write it in a zuliprc (no scheme,
// a port, a path). It is a rule and not a look-up, since no answer of Zulip's API carries
// the name (the realm's string_id):
//
//   - the first label of the host, in lower case: https://acme.zulipchat.com gives acme, https://chat.example.org gives chat.
//   - a leading www says nothing and is passed over, as Zulip does (ROOT_SUBDOMAIN_ALIASES): www.example.org gives example.
//   - an IP address gives its numbers joined by '-': 127.0.0.1 gives 127-0-0-1, [::1] gives 0-0-0-0-0-0-0-1.
//
// Scheme, port and path are ignored. Two sites can give one name (chat.example.org and
// chat.example.com); whoever writes to a stream has to compare the site with the one that
// wrote before. If the rule gives no legal name the error says to choose one.
func RealmFromSite(site string) (Realm, error) {
	s := strings.TrimSpace(site)
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		// The parser's own error would repeat the whole address, with a password if
		// somebody put one there.
		return Realm{}, errors.New("the Zulip site is not an address like https://chat.example.org, so it gives no " +
			"name for the realm: correct the site, or choose a name with --realm")
	}
	name := strings.ToLower(u.Hostname())
	if ip, err := netip.ParseAddr(name); err == nil {
		name = dashed(ip)
	} else {
		first, rest, _ := strings.Cut(name, ".")
		if next, _, _ := strings.Cut(rest, "."); first == "www" && next != "" {
			first = next
		}
		name = first
	}
	r, err := ParseRealm(name)
	if err != nil {
		return Realm{}, fmt.Errorf("the host %s of the Zulip site gives no name for the realm that a NATS subject "+
			"can hold: choose one with --realm", quote(u.Hostname()))
	}
	return r, nil
}

// dashed gives the numbers of an address joined by '-': four decimal ones, or the eight
// groups of hexadecimal digits of IPv6, none left out, so that two addresses never look
// alike. A zone (fe80::1%eth0) is a matter of the local machine and left out.
func dashed(ip netip.Addr) string {
	ip = ip.Unmap()
	if ip.Is4() {
		return strings.ReplaceAll(ip.String(), ".", "-")
	}
	b := ip.As16()
	groups := make([]string, 0, 8)
	for i := 0; i < len(b); i += 2 {
		groups = append(groups, strconv.FormatUint(uint64(b[i])<<8|uint64(b[i+1]), 16))
	}
	return strings.Join(groups, "-")
}

// String gives the token: "chat".
func (r Realm) String() string {
	if r.prefix == "" {
		return ""
	}
	return r.prefix[len(root) : len(r.prefix)-1]
}

// All gives the filter that covers everything of the realm, events and records:
// "zulip.chat.>".
func (r Realm) All() string {
	if r.prefix == "" {
		return ""
	}
	return r.prefix + ">"
}

// Events gives the filters that cover Zulip's own events, and no records:
// "zulip.chat.*"; by place, "zulip.chat.*.channel.*" and so on. No subject is covered by
// two of them.
func (r Realm) Events() []string {
	switch {
	case r.prefix == "":
		return nil
	case r.layout == ByPlace:
		return []string{r.prefix + "*.channel.*", r.prefix + "*." + Direct.String(), r.prefix + "*." + Nowhere.String()}
	}
	return []string{r.prefix + "*"}
}

// Type gives the filter that covers the events of one type: "zulip.chat.message"; by
// place, "zulip.chat.message.>". For a type that has no subject it is empty.
func (r Realm) Type(typ string) string {
	subject, err := r.By(ByType).Event(typ, Nowhere)
	if err == nil && r.layout == ByPlace {
		subject += ".>"
	}
	return subject
}

// Covers says whether a filter that is a subject, or ends in ".>" and has no other
// wildcard, covers a subject.
func Covers(filter, subject string) bool {
	if prefix, wide := strings.CutSuffix(filter, ">"); wide {
		return len(subject) > len(prefix) && strings.HasPrefix(subject, prefix)
	}
	return subject == filter
}

// Event gives the subject of an event of a type, as Zulip spells the type:
// "zulip.chat.message"; by place, "zulip.chat.message.channel.7". The type must be one
// token of at most 128 bytes and not "bridge". Otherwise the event cannot go on a subject
// of its own, and the error's text is the reason to put in its rejected record: one line
// of printable ASCII, which quotes the beginning of the type.
//
// It is called once for every event; it costs one small allocation, by place a few.
func (r Realm) Event(typ string, at Place) (subject string, err error) {
	switch {
	case r.prefix == "":
		return "", errors.New("no realm is set")
	case typ == "":
		return "", errors.New("the event's type is empty")
	case len(typ) > maxType:
		return "", fmt.Errorf("the event's type %s is %d bytes long; a subject takes %d", quote(typ), len(typ), maxType)
	case !isToken(typ):
		return "", fmt.Errorf("the event's type %s is not one subject token of letters, digits, "+
			"'_' and '-'", quote(typ))
	case typ == reserved:
		return "", fmt.Errorf("the event's type %s is reserved for the bridge's own records", quote(typ))
	case r.layout == ByPlace:
		return r.prefix + typ + "." + at.String(), nil
	}
	return r.prefix + typ, nil
}

// Record gives the subject of a record of the bridge's own: "zulip.chat.bridge.gap" for
// [Gap]. A kind that is not one token gives the empty string.
func (r Realm) Record(kind string) string {
	if r.prefix == "" || len(kind) > maxType || !isToken(kind) {
		return ""
	}
	return r.prefix + reserved + "." + kind
}

// Records gives the filter that covers the records of the bridge's own:
// "zulip.chat.bridge.>".
func (r Realm) Records() string {
	if r.prefix == "" {
		return ""
	}
	return r.prefix + reserved + ".>"
}

// State gives the subject of the pieces of a section of the state:
// "zulip.chat.bridge.state.users". A section that is not one token gives the empty string.
func (r Realm) State(section string) string {
	if r.prefix == "" || len(section) > maxType || !isToken(section) {
		return ""
	}
	return r.prefix + reserved + "." + state + "." + section
}

// States gives the filter that covers these pieces, and nothing else:
// "zulip.chat.bridge.state.*".
func (r Realm) States() string {
	if r.prefix == "" {
		return ""
	}
	return r.prefix + reserved + "." + state + ".*"
}

// isToken reports whether s is one or more of A-Z, a-z, 0-9, '_' and '-'.
func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return s != ""
}

// quote puts a foreign string between quotes as printable ASCII, and only its beginning:
// it ends up in headers and logs.
func quote(s string) string {
	const most = 40
	if len(s) <= most {
		return strconv.QuoteToASCII(s)
	}
	return strconv.QuoteToASCII(s[:most]) + "..."
}
