package zulipsim

import (
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Kind says what a request is for.
type Kind string

// The kinds of requests.
const (
	Any      Kind = "any"      // of faults: every request
	Events   Kind = "events"   // GET /events: a poll
	Delete   Kind = "delete"   // DELETE /events
	Register Kind = "register" // POST /register
	History  Kind = "messages" // GET /messages
	Send     Kind = "send"     // POST /messages
	Me       Kind = "me"       // GET /users/me
	Settings Kind = "settings" // GET /server_settings
	Streams  Kind = "streams"  // GET /streams
	Other    Kind = "other"    // whatever else
)

// The pages that are no JSON.
const (
	page502      = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Bad gateway</title></head>\n<body><h1>502</h1><p>The server is starting. Come back in a minute.</p></body></html>\n"
	page405      = "<html>\r\n<head><title>405 Not Allowed</title></head>\r\n<body>\r\n<center><h1>405 Not Allowed</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
	page404      = "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"UTF-8\" /><title>Error | Zulip</title></head>\n<body><h1>Page not found (404)</h1></body>\n</html>\n"
	page404Event = "<html><title>404: Not Found</title><body>404: Not Found</body></html>"
	page400      = "\n<!doctype html>\n<html lang=\"en\">\n<head>\n  <title>Bad Request (400)</title>\n</head>\n<body>\n  <h1>Bad Request (400)</h1><p></p>\n</body>\n</html>\n"
)

// call is one request on its way through the server.
type call struct {
	s       *Server
	w       http.ResponseWriter
	r       *http.Request
	kind    Kind
	tornado bool
	log     *Request
	form    url.Values // query and form; the form wins
	used    map[string]bool
	account *Account
	limits  limits
	waited  bool
	level   int // the feature level when it came
	status  int // of the answer that was made, 0 if none was
	text    []byte
}

// route is one method of one path.
type route struct {
	kind   Kind
	handle func(*call)
	open   bool // needs no login
}

// paths are the endpoints below /api/v1; a number in a path stands for an id.
var paths = map[string]map[string]route{
	"/events": {
		"GET":    {kind: Events, handle: (*call).getEvents},
		"DELETE": {kind: Delete, handle: (*call).deleteEvents},
	},
	"/register":        {"POST": {kind: Register, handle: (*call).register}},
	"/server_settings": {"GET": {kind: Settings, handle: (*call).serverSettings, open: true}},
	"/users/me":        {"GET": {kind: Me, handle: (*call).usersMe}},
	"/users/N":         {"GET": {kind: Other, handle: (*call).user}},
	"/users/me/subscriptions": {
		"POST":   {kind: Other, handle: (*call).addSubscriptions},
		"DELETE": {kind: Other, handle: (*call).removeSubscriptions},
	},
	"/streams":   {"GET": {kind: Streams, handle: (*call).streams}},
	"/streams/N": {"GET": {kind: Other, handle: (*call).stream}},
	"/messages": {
		"GET":  {kind: History, handle: (*call).getMessages},
		"POST": {kind: Send, handle: (*call).sendMessage},
	},
	"/messages/N": {
		"GET":    {kind: Other, handle: (*call).getMessage},
		"PATCH":  {kind: Other, handle: (*call).editMessage},
		"DELETE": {kind: Other, handle: (*call).deleteMessage},
	},
	"/messages/N/reactions": {
		"POST":   {kind: Other, handle: (*call).addReaction},
		"DELETE": {kind: Other, handle: (*call).removeReaction},
	},
	"/messages/flags": {"POST": {kind: Other, handle: (*call).messageFlags}},
	"/typing":         {"POST": {kind: Other, handle: (*call).typing}},
}

var number = regexp.MustCompile(`/\d+`)

// lookUp returns the methods of a path; nil if there is no such path.
func lookUp(path string) map[string]route {
	rest, ok := strings.CutPrefix(path, "/api/v1")
	if !ok {
		return nil
	}
	return paths[number.ReplaceAllString(rest, "/N")]
}

// kindOf says what a request is for.
func kindOf(r *http.Request) Kind {
	if rt, ok := lookUp(r.URL.Path)[r.Method]; ok {
		return rt.kind
	}
	return Other
}

// ServeHTTP serves Zulip's API, below /api/v1.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, r: r, kind: kindOf(r), used: make(map[string]bool)}
	c.form = readForm(r)
	s.lock()
	c.level = s.FeatureLevel
	c.log = s.note(c)
	f := s.faultFor(c)
	s.mu.Unlock()
	watch := &watcher{ResponseWriter: w}
	c.w = watch
	defer func() {
		s.mu.Lock()
		c.log.Status, c.log.Took, c.log.Waited = watch.status, time.Since(c.log.Time), c.waited
		s.mu.Unlock()
	}()
	sleep(r.Context(), s.RoundTrip/2)
	if f != nil {
		f.serve(c)
		return
	}
	c.serve()
}

// watcher notes the status of an answer, and holds it back for the second half of the round trip.
type watcher struct {
	http.ResponseWriter
	status int
}

func (w *watcher) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *watcher) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// serve handles a request as nginx, Django and Tornado together do.
func (c *call) serve() {
	defer c.flush()
	s, r := c.s, c.r
	path := r.URL.Path
	c.tornado = path == "/api/v1/events"
	if c.tornado { // nginx lets GET and DELETE through only
		allow := []string{"OPTIONS, GET, DELETE"}
		switch r.Method {
		case http.MethodGet, http.MethodDelete:
		case http.MethodOptions:
			c.w.Header()["Allow"] = allow
			c.w.WriteHeader(http.StatusNoContent)
			return
		default:
			c.w.Header()["Allow"] = allow
			c.page(http.StatusMethodNotAllowed, "text/html", page405)
			return
		}
		s.lock()
		down := s.down != nil
		s.mu.Unlock()
		if down {
			c.page(http.StatusBadGateway, "text/html", page502)
			return
		}
	}
	host := ThisOrganization
	if s.Hosts != nil {
		host = s.Hosts(r.Host)
	}
	if host == HostNotAllowed {
		c.w.Header()["Vary"] = []string{"Cookie"}
		c.page(http.StatusBadRequest, "text/html; charset=utf-8", page400)
		return
	}
	routes := lookUp(path)
	if routes == nil {
		if strings.HasPrefix(path, "/api/v1/events/") {
			c.w.Header()["Vary"] = []string{"Accept-Encoding"}
			c.page(http.StatusNotFound, "text/html; charset=UTF-8", page404Event)
			return
		}
		c.vary(true)
		c.page(http.StatusNotFound, "text/html; charset=utf-8", page404)
		return
	}
	rt, ok := routes[r.Method]
	if !ok {
		c.wrongMethod(routes)
		return
	}
	if rt.open {
		if host != ThisOrganization {
			c.refuse(http.StatusBadRequest, "BAD_REQUEST", "Invalid subdomain")
			return
		}
		rt.handle(c)
		return
	}
	if !c.logIn(host) {
		return
	}
	s.lock()
	c.limits = s.limit(c.account, c.tornado)
	if c.limits.refused {
		s.tell429(c, c.limits.wait)
	}
	s.mu.Unlock()
	if c.limits.refused {
		c.log.RetryAfter = c.limits.wait
		c.answer(http.StatusTooManyRequests, func(o *object) {
			o.str("result", "error")
			o.str("msg", "API usage exceeded rate limit")
			o.str("code", "RATE_LIMIT_HIT")
			o.raw("retry-after", seconds(c.limits.wait))
		})
		return
	}
	rt.handle(c)
}

// wrongMethod is how Django answers a method that a path does not have.
func (c *call) wrongMethod(routes map[string]route) {
	methods := make([]string, 0, len(routes))
	for m := range routes {
		methods = append(methods, m)
	}
	slices.Sort(methods)
	c.vary(true)
	c.w.Header()["Allow"] = []string{strings.Join(methods, ", ")}
	c.noCache()
	if c.r.Method == http.MethodOptions {
		c.w.Header()["Content-Type"] = []string{"text/html; charset=utf-8"}
		c.w.WriteHeader(http.StatusNoContent)
		return
	}
	var o object
	o.str("result", "error")
	o.str("msg", "Method Not Allowed")
	o.json("allowed_methods", methods)
	c.page(http.StatusMethodNotAllowed, "text/html; charset=utf-8", o.end())
}

// basic reads HTTP Basic credentials without judging them.
func basic(r *http.Request) (email, key string, err string) {
	h := r.Header.Get("Authorization")
	if h == "" {
		return "", "", "Not logged in: API authentication or user session required"
	}
	scheme, coded, _ := strings.Cut(h, " ")
	if lower(scheme) != "basic" {
		return "", "", "This endpoint requires HTTP basic authentication."
	}
	plain, e := base64.StdEncoding.DecodeString(strings.TrimSpace(coded))
	email, key, ok := strings.Cut(string(plain), ":")
	if e != nil || !ok {
		return "", "", "Invalid authorization header for basic auth"
	}
	return email, key, ""
}

var keyForm = regexp.MustCompile(`^[A-Za-z0-9]{32}$`)

// german is Zulip's own translation of the refusals that a client must not read by their text.
var german = map[string]string{
	"Invalid API key": "Ungültiger API-Schlüssel",
}

// logIn finds out whose request it is. Whatever is wrong ends as 401 UNAUTHORIZED with its text (authenticated_rest_api_view in
// zerver/decorator.py), but for a scheme other than Basic.
func (c *call) logIn(host Host) bool {
	s := c.s
	email, key, trouble := basic(c.r)
	s.lock()
	a := s.accounts[lower(email)]
	switch {
	case trouble != "":
	case !keyForm.MatchString(key):
		trouble = "Malformed API key"
	case a == nil || a.system || a.Key != key:
		trouble = "Invalid API key"
	case host != ThisOrganization:
		trouble = "Account is not associated with this subdomain"
	case a.Deactivated:
		trouble = "Account is deactivated"
	case s.closedDown:
		trouble = "This organization has been deactivated"
	case a.Type == IncomingWebhookBot:
		trouble = "This API is not available to incoming webhook bots."
	}
	s.mu.Unlock()
	switch trouble {
	case "":
		c.account = a
		return true
	case "This endpoint requires HTTP basic authentication.":
		c.refuse(http.StatusBadRequest, "BAD_REQUEST", trouble)
	default:
		name := "WWW-Authenticate"
		if c.tornado {
			name = "Www-Authenticate"
		}
		c.w.Header()[name] = []string{`Basic realm="zulip"`}
		if strings.HasPrefix(c.r.Header.Get("Accept-Language"), "de") && german[trouble] != "" {
			trouble = german[trouble]
			c.w.Header()["Content-Language"] = []string{"de"}
		}
		c.refuse(http.StatusUnauthorized, "UNAUTHORIZED", trouble)
	}
	return false
}

// readForm reads query and form. Zulip reads the form of every method that has one; a body of another type is ignored.
func readForm(r *http.Request) url.Values {
	v := r.URL.Query()
	if r.Body == nil || r.Method == http.MethodGet || r.Method == http.MethodHead {
		return v
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 16<<20))
	if err != nil {
		return v
	}
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); kind != "application/x-www-form-urlencoded" {
		return v
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return v
	}
	for k, list := range form {
		v[k] = list
	}
	return v
}

// arg returns an argument, and notes that it is known.
func (c *call) arg(name string) (string, bool) {
	c.used[name] = true
	list, ok := c.form[name]
	if !ok || len(list) == 0 {
		return "", false
	}
	return list[0], true
}

// refusal is an error that is an answer: 400 with a code.
type refusal struct {
	code, msg string
	more      func(*object) // members between msg and code
}

func bad(format string, args ...any) *refusal {
	return &refusal{code: "BAD_REQUEST", msg: fmt.Sprintf(format, args...)}
}

func missing(name string) *refusal {
	return &refusal{"REQUEST_VARIABLE_MISSING", fmt.Sprintf("Missing '%s' argument", name), func(o *object) { o.str("var_name", name) }}
}

// value reads an argument that is JSON text.
func (c *call) value(name string, into any, what string) (given bool, bad *refusal) {
	text, ok := c.arg(name)
	if !ok {
		return false, nil
	}
	return true, decode(name, text, into, what)
}

func decode(name, text string, into any, what string) *refusal {
	if !json.Valid([]byte(text)) {
		return bad("%s is not valid JSON", name)
	}
	if text == "null" || json.Unmarshal([]byte(text), into) != nil {
		return bad("%s is not %s", name, what)
	}
	return nil
}

// ignored lists the arguments that the endpoint does not know (level 167 on).
func (c *call) ignored(o *object) {
	if c.level < 167 {
		return
	}
	var names []string
	for k := range c.form {
		if !c.used[k] && k != "client" {
			names = append(names, k)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		o.json("ignored_parameters_unsupported", names)
	}
}

// clientName is what Zulip makes of the User-Agent (zerver/lib/user_agent.py): what stands before the slash, cut to 30 characters.
func (c *call) clientName() string {
	if name, ok := c.form["client"]; ok {
		return name[0]
	}
	agent := c.r.UserAgent()
	name, _, _ := strings.Cut(agent, "/")
	if name == "" {
		return "Unspecified"
	}
	if r := []rune(name); len(r) > 30 {
		name = string(r[:30])
	}
	return name
}

func (c *call) vary(cookie bool) {
	vary := "Accept-Language"
	if cookie {
		vary += ", Cookie"
	}
	h := c.w.Header()
	h["Vary"] = []string{vary}
	if h["Content-Language"] == nil {
		h["Content-Language"] = []string{"en"}
	}
}

func (c *call) noCache() {
	c.w.Header()["Cache-Control"] = []string{"max-age=0, no-cache, no-store, must-revalidate, private"}
}

// page answers with something that is no JSON.
func (c *call) page(status int, kind, body string) {
	h := c.w.Header()
	h["Content-Type"] = []string{kind}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	sleep(c.r.Context(), c.s.RoundTrip/2)
	c.w.WriteHeader(status)
	io.WriteString(c.w, body)
}

// refuse answers with an error.
func (c *call) refuse(status int, code, msg string) {
	c.answer(status, func(o *object) {
		o.str("result", "error")
		o.str("msg", msg)
		if code != "" {
			o.str("code", code)
		}
	})
}

func (c *call) refused(r *refusal) {
	c.answer(http.StatusBadRequest, func(o *object) {
		o.str("result", "error")
		o.str("msg", r.msg)
		if r.more != nil {
			r.more(o)
		}
		o.str("code", r.code)
	})
}

// succeed answers 200; more adds what the answer has besides result and msg.
func (c *call) succeed(more func(o *object)) {
	c.answer(http.StatusOK, func(o *object) {
		o.str("result", "success")
		o.str("msg", "")
		if more != nil {
			more(o)
		}
		c.ignored(o)
	})
}

// answer makes a JSON answer, to be sent when the handler is done: handlers make it while they hold the server's lock.
func (c *call) answer(status int, body func(*object)) {
	var o object
	body(&o)
	c.status, c.text = status, append(o.b, '}', '\n')
}

// flush sends the answer that was made, if there is one.
func (c *call) flush() {
	if c.status != 0 {
		c.jsonHeaders(c.status)
		c.send(c.status, int64(len(c.text)), func(w io.Writer) { w.Write(c.text) })
	}
}

func (c *call) jsonHeaders(status int) {
	c.w.Header()["Content-Type"] = []string{"application/json"}
	c.vary(c.account == nil || c.waited)
	if status == http.StatusOK && c.account != nil {
		c.noCache()
	}
	if status == http.StatusTooManyRequests || c.account != nil {
		c.limits.headers(c.w.Header())
	}
}

var gzips = sync.Pool{New: func() any { w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed); return w }}

// send writes an answer of known size (-1: unknown), with gzip if the client takes it and nginx would bother.
func (c *call) send(status int, size int64, write func(io.Writer)) {
	h := c.w.Header()
	sleep(c.r.Context(), c.s.RoundTrip/2)
	if !c.s.NoGzip && (size < 0 || size >= 20) && strings.Contains(c.r.Header.Get("Accept-Encoding"), "gzip") {
		h["Content-Encoding"] = []string{"gzip"}
		c.w.WriteHeader(status)
		z := gzips.Get().(*gzip.Writer)
		z.Reset(c.w)
		write(z)
		z.Close()
		gzips.Put(z)
		return
	}
	if size >= 0 {
		h["Content-Length"] = []string{strconv.FormatInt(size, 10)}
	}
	c.w.WriteHeader(status)
	write(c.w)
}

// serverError is Zulip's 500.
func (c *call) serverError() { c.refuse(http.StatusInternalServerError, "", "Internal server error") }

// id returns the n-th number in the path.
func (c *call) id() int64 {
	n, _ := strconv.ParseInt(strings.TrimPrefix(number.FindString(c.r.URL.Path[len("/api/v1"):]), "/"), 10, 64)
	return n
}

func (c *call) serverSettings() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	c.succeed(func(o *object) {
		o.raw("authentication_methods", `{"password":true,"dev":false,"email":true,"ldap":false,"remoteuser":false,"github":false,`+
			`"azuread":false,"gitlab":false,"google":false,"apple":false,"saml":false,"openid connect":false}`)
		o.str("zulip_version", s.Version)
		o.str("zulip_merge_base", "")
		o.int("zulip_feature_level", int64(s.FeatureLevel))
		o.bool("push_notifications_enabled", false)
		o.bool("is_incompatible", false)
		o.bool("email_auth_enabled", true)
		o.bool("require_email_format_usernames", true)
		if s.FeatureLevel >= 257 {
			o.str("realm_url", s.RealmURL)
		}
		o.str("realm_name", s.RealmName)
		o.str("realm_icon", "/user_avatars/3/realm/icon.png?version=4")
		o.str("realm_description", "<p>The <strong>"+s.RealmName+"</strong> organization</p>")
		o.bool("realm_web_public_access_enabled", true)
		o.raw("external_authentication_methods", "[]")
		o.str("realm_uri", s.RealmURL)
	})
}

func (c *call) usersMe() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	c.succeed(func(o *object) {
		s.userFields(o, c.account, true, false)
		o.int("max_message_id", s.newest(c.account))
	})
}

// newest is the id of the newest message in the account's own history, -1 if there is none.
func (s *Server) newest(a *Account) int64 {
	for _, m := range slices.Backward(s.messages) {
		if !m.ghost && m.row(a) != nil {
			return m.id
		}
	}
	return -1
}

func (c *call) user() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.people, func(a *Account) bool { return a.ID == c.id() && !a.system })
	if i < 0 {
		c.refused(bad("No such user"))
		return
	}
	c.succeed(func(o *object) {
		var u object
		s.userFields(&u, s.people[i], true, false)
		o.raw("user", u.end())
	})
}

// streams is GET /streams: the channels that the account can see, by id.
func (c *call) streams() {
	s := c.s
	for _, name := range []string{"include_public", "include_subscribed", "include_default", "include_all", "include_all_active",
		"include_owner_subscribed", "include_web_public"} {
		var yes bool
		if _, r := c.value(name, &yes, "a boolean"); r != nil {
			c.refused(r)
			return
		}
	}
	s.lock()
	defer s.mu.Unlock()
	ids := make([]int64, 0, len(s.channelIDs))
	for id := range s.channelIDs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var list []string
	for _, id := range ids {
		if ch := s.channelIDs[id]; c.account.sees(ch) {
			list = append(list, s.channelObject(ch))
		}
	}
	c.succeed(func(o *object) { o.raw("streams", "["+strings.Join(list, ",")+"]") })
}

func (c *call) stream() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	ch := s.channelIDs[c.id()]
	if ch == nil || !c.account.sees(ch) {
		c.refused(bad("Invalid channel ID"))
		return
	}
	c.succeed(func(o *object) { o.raw("stream", s.channelObject(ch)) })
}

// principals reads whom a change of subscriptions is about: ids or addresses; by default who asks.
func (c *call) principals() ([]*Account, *refusal) {
	var who []any
	if given, r := c.value("principals", &who, "a list"); r != nil || !given || len(who) == 0 {
		return []*Account{c.account}, r
	}
	var list []*Account
	for _, p := range who {
		i := slices.IndexFunc(c.s.people, func(a *Account) bool {
			if id, ok := p.(float64); ok {
				return a.ID == int64(id)
			}
			return lower(a.Email) == lower(fmt.Sprint(p))
		})
		if i < 0 {
			return nil, bad("No such user")
		}
		list = append(list, c.s.people[i])
	}
	return list, nil
}

// addSubscriptions is POST /users/me/subscriptions; channels that do not exist are made.
func (c *call) addSubscriptions() {
	s := c.s
	var wanted []struct{ Name, Description string }
	given, r := c.value("subscriptions", &wanted, "a list")
	if r == nil && !given {
		r = missing("subscriptions")
	}
	var private, shared bool
	shared = true
	if r == nil {
		_, r = c.value("invite_only", &private, "a boolean")
	}
	if r == nil {
		_, r = c.value("history_public_to_subscribers", &shared, "a boolean")
	}
	s.lock()
	defer s.mu.Unlock()
	var who []*Account
	if r == nil {
		who, r = c.principals()
	}
	if r != nil {
		c.refused(r)
		return
	}
	subscribed, already := make(map[string][]string), make(map[string][]string)
	for _, w := range wanted {
		ch := s.channels[lower(w.Name)]
		fresh := ch == nil
		if fresh {
			ch = s.channel(w.Name)
			ch.Private, ch.HistoryPublic, ch.Description, ch.creator = private, shared, w.Description, c.account
			for _, a := range s.people { // a new channel begins with those who are named
				a.subs[ch] = false
			}
			b := newEvent("stream", "create")
			b.raw("streams", "["+s.channelObject(ch)+"]")
			ev := b.done()
			s.deliver(func() {
				s.emit(ev, func(q *queue) bool { return slices.Contains(who, q.account) || q.account.sees(ch) })
			})
		}
		for _, a := range who {
			key := strconv.FormatInt(a.ID, 10)
			if a.subscribed(ch) {
				already[key] = append(already[key], ch.Name)
			} else {
				subscribed[key] = append(subscribed[key], ch.Name)
			}
		}
		s.subscribe(ch, who...)
		if fresh {
			kind := "Public"
			if ch.Private {
				kind = "Private, shared history"
				if !ch.HistoryPublic {
					kind = "Private, protected history"
				}
			}
			text := fmt.Sprintf("**%s** channel created by @_**%s|%d**. **Description:**\n```` quote\n%s\n````", kind, c.account.FullName,
				c.account.ID, cmp.Or(ch.Description, "*No description.*"))
			s.commit(s.compose(Message{Channel: ch.Name, Topic: "channel events", Sender: notificationBot, Client: "Internal", Content: text}), Message{})
		}
	}
	c.succeed(func(o *object) {
		o.json("subscribed", subscribed)
		o.json("already_subscribed", already)
	})
}

func (c *call) removeSubscriptions() {
	s := c.s
	var names []string
	given, r := c.value("subscriptions", &names, "a list")
	if r == nil && !given {
		r = missing("subscriptions")
	}
	s.lock()
	defer s.mu.Unlock()
	var who []*Account
	if r == nil {
		who, r = c.principals()
	}
	if r != nil {
		c.refused(r)
		return
	}
	removed, not := []string{}, []string{}
	for _, name := range names {
		ch := s.channels[lower(name)]
		if ch == nil {
			c.refused(bad("Channel(s) (%s) do not exist", name))
			return
		}
		for _, a := range who {
			if s.unsubscribe(ch, a) {
				removed = append(removed, ch.Name)
			} else {
				not = append(not, ch.Name)
			}
		}
	}
	c.succeed(func(o *object) {
		o.json("removed", removed)
		o.json("not_removed", not)
	})
}

// sendMessage is POST /messages.
func (c *call) sendMessage() {
	s := c.s
	m, r := c.readMessage()
	if r != nil {
		c.refused(r)
		return
	}
	s.lock()
	defer s.mu.Unlock()
	if m.Channel != "" && s.channels[lower(m.Channel)] == nil {
		c.refused(&refusal{"STREAM_DOES_NOT_EXIST", fmt.Sprintf("Channel '%s' does not exist", m.Channel),
			func(o *object) { o.str("stream", m.Channel) }})
		return
	}
	msg := s.compose(m)
	first := msg.channel != nil && !c.account.isBot() && !slices.ContainsFunc(s.messages, func(o *message) bool {
		return o.channel == msg.channel && o.sender == c.account && lower(o.topic) == lower(msg.topic)
	})
	if first {
		// A human who begins to write in a topic follows it from now on; his own queues hear of that before the message.
		muted := newEvent("muted_topics", "")
		muted.raw("muted_topics", "[]")
		topic := newEvent("user_topic", "")
		topic.int("stream_id", msg.channel.ID)
		topic.str("topic_name", msg.topic)
		topic.int("last_updated", msg.sent.Unix())
		topic.int("visibility_policy", 3)
		a := c.account
		s.deliver(func() {
			s.emit(muted.done(), only(a))
			s.emit(topic.done(), only(a))
		})
	}
	s.commit(msg, m)
	c.succeed(func(o *object) {
		o.int("id", msg.id)
		if first {
			o.int("automatic_new_visibility_policy", 3)
		}
	})
}

// readMessage reads the arguments of POST /messages.
func (c *call) readMessage() (m Message, r *refusal) {
	kind, _ := c.arg("type")
	to, _ := c.arg("to")
	m.Topic, _ = c.arg("topic")
	if old, ok := c.arg("subject"); ok && m.Topic == "" {
		m.Topic = old
	}
	content, ok := c.arg("content")
	m.SenderQueue, _ = c.arg("queue_id")
	m.LocalID, _ = c.arg("local_id")
	m.Sender, m.Client, m.Content = c.account.Email, c.clientName(), strings.TrimRight(content, " \n\t")
	switch {
	case !ok:
		return m, missing("content")
	case strings.TrimSpace(content) == "":
		return m, bad("Message must not be empty")
	case strings.ContainsRune(content, 0):
		return m, bad("Message must not contain null bytes")
	}
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	switch kind {
	case "channel", "stream":
		m.Channel = strings.Trim(to, `"`)
		if id, err := strconv.ParseInt(to, 10, 64); err == nil {
			ch := s.channelIDs[id]
			if ch == nil {
				return m, &refusal{"STREAM_DOES_NOT_EXIST", fmt.Sprintf("Channel with ID '%d' does not exist", id),
					func(o *object) { o.int("stream_id", id) }}
			}
			m.Channel = ch.Name
		}
	case "direct", "private":
		var list []any
		if !json.Valid([]byte(to)) {
			for one := range strings.SplitSeq(to, ",") {
				list = append(list, strings.TrimSpace(one))
			}
		} else if r := decode("to", to, &list, "a list"); r != nil {
			return m, r
		}
		for _, one := range list {
			i := slices.IndexFunc(s.people, func(a *Account) bool {
				if id, ok := one.(float64); ok {
					return a.ID == int64(id)
				}
				return lower(a.Email) == lower(fmt.Sprint(one)) || a.shownEmail() == lower(fmt.Sprint(one))
			})
			if i < 0 {
				return m, bad("Invalid email '%v'", one)
			}
			m.To = append(m.To, s.people[i].Email)
		}
	default:
		return m, bad("Invalid message type")
	}
	return m, nil
}

// own finds the message that the path names, for a change of it.
func (c *call) own() (*message, *refusal) {
	m := c.s.find(c.id())
	if m == nil || !c.s.readable(c.account, m) {
		return nil, bad("Invalid message(s)")
	}
	return m, nil
}

func (c *call) editMessage() {
	s := c.s
	e := Edit{By: c.account.Email}
	if v, ok := c.arg("content"); ok {
		e.Content = &v
	}
	if v, ok := c.arg("topic"); ok {
		e.Topic = &v
	}
	mode, _ := c.arg("propagate_mode")
	_, r := c.value("send_notification_to_new_thread", &e.Notice, "a boolean")
	var old bool
	if r == nil {
		_, r = c.value("send_notification_to_old_thread", &old, "a boolean")
	}
	var to int64
	var moved bool
	if r == nil {
		moved, r = c.value("stream_id", &to, "an integer")
	}
	if _, given := c.arg("send_notification_to_new_thread"); !given {
		e.Notice = e.Topic != nil
	}
	s.lock()
	defer s.mu.Unlock()
	var m *message
	if r == nil {
		m, r = c.own()
	}
	if r == nil && moved {
		if ch := s.channelIDs[to]; ch == nil {
			r = bad("Invalid channel ID")
		} else {
			e.Channel = &ch.Name
		}
	}
	switch {
	case r != nil:
	case e.Content == nil && e.Topic == nil && e.Channel == nil:
		r = bad("Nothing to change")
	case e.Content != nil && m.sender != c.account:
		r = bad("You don't have permission to edit this message")
	}
	if r != nil {
		c.refused(r)
		return
	}
	if m.channel != nil && (mode == "change_all" || mode == "change_later") {
		for _, o := range s.messages {
			if o.channel == m.channel && lower(o.topic) == lower(m.topic) && !o.ghost && (mode == "change_all" || o.id >= m.id) {
				e.Also = append(e.Also, o.id)
			}
		}
	}
	s.edit(m, e)
	c.succeed(func(o *object) { o.raw("detached_uploads", "[]") })
}

func (c *call) deleteMessage() {
	s := c.s
	s.lock()
	defer s.mu.Unlock()
	m, r := c.own()
	if r == nil && m.sender != c.account && !c.account.Owner {
		r = bad("You don't have permission to delete this message")
	}
	if r != nil {
		c.refused(r)
		return
	}
	s.delete([]int64{m.id})
	c.succeed(nil)
}

func (c *call) addReaction()    { c.changeReaction("add") }
func (c *call) removeReaction() { c.changeReaction("remove") }

func (c *call) changeReaction(op string) {
	s := c.s
	name, ok := c.arg("emoji_name")
	c.arg("emoji_code")
	c.arg("reaction_type")
	s.lock()
	defer s.mu.Unlock()
	m, r := c.own()
	if r == nil && !ok {
		r = missing("emoji_name")
	}
	if r != nil {
		c.refused(r)
		return
	}
	if !s.react(m, c.account, name, op) {
		r = &refusal{code: "REACTION_ALREADY_EXISTS", msg: "Reaction already exists."}
		if op == "remove" {
			r = &refusal{code: "REACTION_DOES_NOT_EXIST", msg: "Reaction doesn't exist."}
		}
		c.refused(r)
		return
	}
	c.succeed(nil)
}

func (c *call) messageFlags() {
	s := c.s
	var ids []int64
	given, r := c.value("messages", &ids, "a list")
	op, okOp := c.arg("op")
	flag, okFlag := c.arg("flag")
	switch {
	case r != nil:
	case !given:
		r = missing("messages")
	case !okOp:
		r = missing("op")
	case !okFlag:
		r = missing("flag")
	case op != "add" && op != "remove":
		r = bad("Invalid message flag operation: '%s'", op)
	}
	if r != nil {
		c.refused(r)
		return
	}
	s.lock()
	defer s.mu.Unlock()
	s.flag(c.account, op, flag, ids)
	c.succeed(func(o *object) {
		o.json("messages", ids)
		o.raw("ignored_because_not_subscribed_channels", "[]")
	})
}

func (c *call) typing() {
	op, _ := c.arg("op")
	kind, _ := c.arg("type")
	topic, _ := c.arg("topic")
	var to []int64
	var channel int64
	_, r := c.value("to", &to, "a list")
	if r == nil {
		_, r = c.value("stream_id", &channel, "an integer")
	}
	if r == nil && op != "start" && op != "stop" {
		r = bad("Invalid op")
	}
	c.s.lock()
	var name string
	var people []string
	if r == nil && (kind == "channel" || kind == "stream") {
		if ch := c.s.channelIDs[channel]; ch != nil {
			name = ch.Name
		} else {
			r = bad("Invalid channel ID")
		}
	}
	for _, id := range to {
		if i := slices.IndexFunc(c.s.people, func(a *Account) bool { return a.ID == id }); i >= 0 {
			people = append(people, c.s.people[i].Email)
		}
	}
	c.s.mu.Unlock()
	if r != nil {
		c.refused(r)
		return
	}
	c.s.Typing(c.account.Email, op, name, topic, people...)
	c.succeed(nil)
}
