package poller

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// RefusedKind tells apart what a 400 can mean.
type RefusedKind int

const (
	// RefusedOther is a refusal that none of the others describes.
	RefusedOther RefusedKind = iota
	// BadQueue: the queue is expired, unknown, or another account's (code
	// BAD_EVENT_QUEUE_ID).
	BadQueue
	// Pruned: "An event newer than N has already been pruned!", that is somebody
	// acknowledged more than we have. Nothing was thrown away by this poll.
	Pruned
	// NotInQueue: "Event N was not in this queue". Zulip says so after it has thrown away
	// everything up to N (zulip/zulip, zerver/tornado/event_queue.py).
	NotInQueue
)

func (k RefusedKind) String() string {
	return [...]string{"refused", "bad queue", "pruned", "not in queue"}[k]
}

// refusedKind reads a refusal. The two about pruning carry the code of every bad request,
// so their English text is all there is; that is why every request asks for English.
// Servers before the codes had only text for a bad queue as well.
func refusedKind(code, msg string) RefusedKind {
	switch {
	case code == "BAD_EVENT_QUEUE_ID" || code == "" && strings.HasPrefix(strings.ToLower(msg), "bad event queue id"):
		return BadQueue
	case strings.Contains(msg, "has already been pruned"):
		return Pruned
	case strings.Contains(msg, "was not in this queue"):
		return NotInQueue
	}
	return RefusedOther
}

// RefusedError is a 400 in Zulip's own words: the request is not wrong for a moment, but
// for good.
type RefusedError struct {
	Kind    RefusedKind
	Status  int
	Code    string // Zulip's code, such as BAD_EVENT_QUEUE_ID; may be empty
	Msg     string // Zulip's text
	Request string // method and path
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("Zulip refuses %s: %s (%s)", e.Request, quote(e.Msg),
		strings.TrimSpace(strconv.Itoa(e.Status)+" "+shortCode(e.Code)))
}

// shortCode is a code of Zulip's as it stands in messages: those that there are have 40
// letters at most.
func shortCode(code string) string { return code[:min(len(code), 64)] }

// AuthError says that Zulip does not let the account in. It is 401 with code UNAUTHORIZED
// for wrong keys, deactivated accounts, deactivated organizations and wrong hosts alike;
// older servers have a code for each.
type AuthError struct {
	Status      int
	Code, Msg   string
	Email, Site string
}

func (e *AuthError) Error() string {
	return fmt.Sprintf("Zulip at %s does not let %s in: %s (%d); %s", e.Site, e.Email, quote(e.Msg),
		e.Status, e.remedy())
}

// remedy is what to do about it. All but old servers have one code for all of it, so the
// English text decides, which is why every request asks for English
// (zerver/lib/exceptions.py, zerver/decorator.py).
func (e *AuthError) remedy() string {
	says := func(words string) bool { return strings.Contains(strings.ToLower(e.Msg), words) }
	switch {
	case e.Code == "REALM_DEACTIVATED" || says("organization") && says("deactivated"):
		return "the key is not to blame: an owner of the organization, or who runs the server, has to reactivate it"
	case e.Code == "USER_DEACTIVATED" || says("account is deactivated"):
		return "an administrator has to reactivate the account (a bot is deactivated with its owner), or give a bot " +
			"of somebody else"
	case says("not associated with this subdomain"):
		return "the account belongs to another organization on that server: look whether the site is right"
	case says("incoming webhook"):
		return "make a bot of the type generic"
	}
	return "download the zuliprc again, or look whether the account is active"
}

// authCode reports whether code means trouble with the account, whatever the status it
// comes with.
func authCode(code string) bool {
	switch code {
	case "UNAUTHORIZED", "INVALID_API_KEY", "USER_DEACTIVATED", "REALM_DEACTIVATED":
		return true
	}
	return false
}

// ConfigError is something that the operator must mend: a zuliprc that cannot be used, or
// options that Zulip refuses. Its text is one sentence that names the place; no secret is
// in it.
type ConfigError struct {
	Msg string
	Err error // the cause, or nil
}

func (e *ConfigError) Error() string { return e.Msg }

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

func configErrorf(format string, args ...any) *ConfigError {
	return &ConfigError{Msg: fmt.Sprintf(format, args...)}
}

// transientError is an answer, or the lack of one, that a later request may heal.
type transientError struct {
	text    string // what Zulip does, in words for operators
	status  int    // of an answer that is no 200 and no 429; else 0
	limited bool   // a 429
	wait    time.Duration
	rate    rate
}

func (t *transientError) Error() string { return t.text }

// quote makes text from outside fit for a line of log.
func quote(s string) string {
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strconv.Quote(s)
}
