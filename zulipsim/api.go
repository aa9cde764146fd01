package zulipsim

import (
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
	page502 = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Bad " +
		"gateway</title></head>\n<body><h1>502</h1><p>The server is starting. Come back in a " +
		"minute.</p></body></html>\n"
	page405 = "<html>\r\n<head><title>405 Not Allowed</title></head>\r\n<body>\r\n<center><h1>405 Not " +
		"Allowed</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
	page404 = "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"UTF-8\" /><title>Error | " +
		"Zulip</title></head>\n<body><h1>Page not found (404)</h1></body>\n</html>\n"
	page404Event = "<html><title>404: Not Found</title><body>404: Not Found</body></html>"
	page400      = "\n<!doctype html>\n<html lang=\"en\">\n<head>\n  <title>Bad Request " +
		"(400)</title>\n</head>\n<body>\n  <h1>Bad Request (400)</h1><p></p>\n</body>\n</html>\n"
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
	"/messages/flags":    {"POST": {kind: Other, handle: (*call).messageFlags}},
	"/typing":            {"POST": {kind: Other, handle: (*call).typing}},
	"/users/me/presence": {"POST": {kind: Other, handle: (*call).presence}},
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
	watch := &watcher{ResponseWriter: w, s: s}
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

// watcher notes the status of an answer, and holds it back for the second half of the
// round trip.
type watcher struct {
	http.ResponseWriter
	s      *Server
	status int
}

func (w *watcher) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		if w.s.Clock != nil {
			w.Header()["Date"] = []string{w.s.now().UTC().Format(http.TimeFormat)}
		}
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

// german is Zulip's own translation of the refusals that a client must not read by their
// text.
var german = map[string]string{
	"Invalid API key": "Ungültiger API-Schlüssel",
}

// logIn finds out whose request it is. Whatever is wrong ends as 401 UNAUTHORIZED with
// its text (authenticated_rest_api_view in zerver/decorator.py), but for a scheme other
// than Basic.
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

// readForm reads query and form. Zulip reads the form of every method that has one; a
// body of another type is ignored.
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
	return &refusal{"REQUEST_VARIABLE_MISSING", fmt.Sprintf("Missing '%s' argument", name),
		func(o *object) { o.str("var_name", name) }}
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

// clientName is what Zulip makes of the User-Agent (zerver/lib/user_agent.py): what
// stands before the slash, cut to 30 characters.
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

// answer makes a JSON answer, to be sent when the handler is done: handlers make it while
// they hold the server's lock.
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
		c.limits.headers(c.w.Header(), c.s.now())
	}
}

var gzips = sync.Pool{New: func() any { w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed); return w }}

// send writes an answer of known size (-1: unknown), with gzip if the client takes it and
// nginx would bother.
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
