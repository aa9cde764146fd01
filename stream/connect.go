package stream

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"zulip-nats/health"
	"zulip-nats/logevent"
	"zulip-nats/redact"
)

// ConnectConfig says how to reach NATS and as whom. Files are read again at each
// reconnect, so that rotated credentials heal by themselves.
type ConnectConfig struct {
	// URL is one server or several, separated by commas: nats://host:port, tls://, ws://,
	// wss:// or just host:port; a user and a password, or a token, may stand before the
	// host. Empty is nats://127.0.0.1:4222.
	URL string
	// Name is what the server shows for this connection (nats server report connections).
	// It names the process: a connection may serve several realms.
	Name string
	// Creds is a file with a user's JWT and seed; NKey a file with a seed; at most one of
	// the two.
	Creds, NKey string
	// JWT and Seed are the same as texts instead of files: a user's JWT and its seed, or
	// a seed alone.
	JWT, Seed string
	// User and Password serve where the URL has none, and so does Token. A User without a
	// Password is a token too, as it is for the nats command (nats-io/natscli,
	// cli/util.go).
	User, Password, Token string
	// CA is a file with the certificates that sign the server's; Cert and Key are ours,
	// for servers that ask for one.
	CA, Cert, Key string
	// TLSFirst begins with TLS before the server has said anything, for servers with
	// handshake_first.
	TLSFirst bool
	// InboxPrefix begins the subjects that answers come to; empty is _INBOX. Who may
	// subscribe to the prefix of others can read their answers.
	InboxPrefix string
	// Log gets each change of the connection's state, once.
	Log zerolog.Logger
}

// Conn is a connection to NATS, made by [Connect], for all streams and leases of a
// process.
type Conn struct {
	*nats.Conn
	link *link
	log  *connLog
}

const (
	reconnectWait   = 250 * time.Millisecond
	reconnectJitter = 250 * time.Millisecond
	pingInterval    = 5 * time.Second
	pingsLost       = 2
)

// Connect returns a connection that never gives up. It may not be connected yet when it
// is returned, and ctx ends only the first attempt; close it when done (there is nothing
// to drain: every write is acknowledged or unclear).
//
// What cannot be right whatever the servers do, as a URL that is none or a file that
// cannot be read, is a [*ConfigError]. All else is waited for, and said once in the log:
// a server that is not there, a refused password, something that is no NATS server.
//
// Nothing is kept to be sent after a reconnect (ReconnectBufSize -1): it would be stored
// long after it was given up. The ping interval finds a dead link within 15 seconds
// instead of six minutes. IgnoreAuthErrorAbort: the second refusal of a password would
// close the connection for ever.
func Connect(ctx context.Context, cfg ConnectConfig) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	servers, err := parseURLs(cfg.URL)
	if err != nil {
		return nil, &ConfigError{Setting: "NATS URL", Reason: err.Error()}
	}
	d := &dialer{}
	j := &connLog{log: cfg.Log, dialer: d, servers: redact.URLs(strings.Join(servers, ",")),
		credentials: cfg.credentials(servers)}
	l := newLink()
	options := []nats.Option{
		nats.Name(cfg.Name),
		nats.Timeout(connectTimeout),
		nats.SetCustomDialer(d),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.ReconnectBufSize(-1),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsLost),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(),
		nats.ConnectHandler(j.connected),
		nats.ReconnectHandler(j.connected),
		nats.DisconnectErrHandler(j.disconnected),
		nats.ReconnectErrHandler(j.failed),
		nats.ErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
			if v, ok := parseViolation(err); ok && l.tell(v) {
				return // who waited for it reports it
			}
			j.complained(nc, sub, err)
		}),
		nats.ClosedHandler(j.closed),
		nats.LameDuckModeHandler(j.lameDuck),
	}
	seed := &seedFile{path: cfg.NKey}
	more, err := credentialOptions(cfg, seed)
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(strings.Join(servers, ","), append(options, more...)...)
	if err != nil {
		// What could be wrong was looked at above. A file may have been changed since,
		// and the error names it.
		return nil, &ConfigError{Setting: "NATS connection",
			Reason: fmt.Sprintf("%s: %s", j.servers, redact.FileError(err))}
	}
	seed.conn.Store(nc)
	if ctx.Err() != nil {
		nc.Close()
		return nil, context.Cause(ctx)
	}
	l.start(nc)
	// nats.go tells of a later failure by the connection's status only.
	go j.watch(nc, nc.StatusChanged(nats.RECONNECTING, nats.CLOSED))
	if nc.IsConnected() {
		j.connected(nc)
	}
	return &Conn{nc, l, j}, nil
}

// Disconnected is set while there is no connection and an attempt has failed. The reason
// is refused (what we sign in with), tls, stranger (no NATS server listens there), absent,
// lost or failing; the text is the error of the last attempt.
func (c *Conn) Disconnected() *health.Condition { return &c.log.down }

// Check says, by a [*ConfigError], what cannot be right whatever the servers do. It reads
// the files that are named, and connects to nothing.
func (c *ConnectConfig) Check() error {
	if _, err := parseURLs(c.URL); err != nil {
		return &ConfigError{Setting: "NATS URL", Reason: err.Error()}
	}
	_, err := credentialOptions(*c, &seedFile{path: c.NKey})
	return err
}

// credentials says what we sign in with, for a log: where it was given, and nothing that
// may be a secret. The order is that of nats.go.
func (c *ConnectConfig) credentials(servers []string) string {
	inURL := slices.ContainsFunc(servers, func(s string) bool { return strings.Contains(s, "@") })
	switch {
	case c.Creds != "":
		return "the credentials file " + redact.Path(c.Creds)
	case c.NKey != "":
		return "the nkey file " + redact.Path(c.NKey)
	case c.JWT+c.Seed != "":
		return "a JWT or a seed"
	case inURL:
		return "what stands before the @ of the NATS URL"
	case c.Password != "" && c.User != "" && redact.LikeName(c.User):
		return "the user " + c.User + " and a password"
	case c.Password != "":
		return "a user and a password"
	case c.Token+c.User != "":
		return "a token (a user without a password is one)"
	case c.Cert != "":
		return "the client certificate " + redact.Path(c.Cert)
	}
	return "none"
}

// seedFile signs in with the seed that its file holds at the time.
// nats.NkeyOptionFromSeed reads the seed anew but keeps the public key of the start,
// which a rotated seed does not fit.
type seedFile struct {
	path string
	conn atomic.Pointer[nats.Conn]
}

// pair reads the file.
func (s *seedFile) pair() (pair nkeys.KeyPair, public string, err error) {
	text, err := os.ReadFile(s.path)
	if err != nil {
		return nil, "", err
	}
	defer clear(text)
	if pair, err = nkeys.ParseDecoratedNKey(text); err != nil {
		return nil, "", err
	}
	public, err = pair.PublicKey()
	return pair, public, err
}

// sign is called for each attempt, with the connection's lock held and after the public
// key for it was taken. So a new seed fails once more, and the attempt after it is right.
func (s *seedFile) sign(nonce []byte) ([]byte, error) {
	pair, public, err := s.pair()
	if err != nil {
		return nil, err
	}
	defer pair.Wipe()
	if nc := s.conn.Load(); nc != nil {
		nc.Opts.Nkey = public
	}
	return pair.Sign(nonce)
}

func credentialOptions(cfg ConnectConfig, seed *seedFile) ([]nats.Option, error) {
	var options []nats.Option
	if p := cfg.InboxPrefix; p != "" {
		if err := checkSubject("NATS inbox prefix", p); err != nil {
			return nil, err
		}
		options = append(options, nats.CustomInboxPrefix(strings.TrimSuffix(p, ".")))
	}
	if cfg.TLSFirst {
		options = append(options, nats.TLSHandshakeFirst())
	}
	unreadable := func(setting, path string, err error) error {
		return &ConfigError{Setting: setting,
			Reason: fmt.Sprintf("the file %s cannot be read: %s; the name of a file belongs here, not what is in it",
				redact.Path(path), redact.FileError(err))}
	}
	file := func(setting, path string) error {
		f, err := os.Open(path)
		if err != nil {
			return unreadable(setting, path, err)
		}
		return f.Close()
	}
	ways := 0
	for _, given := range []bool{cfg.Creds != "", cfg.NKey != "", cfg.JWT+cfg.Seed != ""} {
		if given {
			ways++
		}
	}
	switch {
	case ways > 1:
		return nil, &ConfigError{Setting: "NATS credentials",
			Reason: "a credentials file, an nkey file, and a JWT or seed by itself are three " +
				"ways to say who we are; use one of them"}
	case cfg.JWT+cfg.Seed != "":
		option, err := textOption(cfg.JWT, cfg.Seed)
		if err != nil {
			return nil, err
		}
		options = append(options, option)
	case cfg.Creds != "":
		if err := file("NATS credentials file", cfg.Creds); err != nil {
			return nil, err
		}
		options = append(options, nats.UserCredentials(cfg.Creds))
	case cfg.NKey != "":
		if err := file("NATS nkey file", cfg.NKey); err != nil {
			return nil, err
		}
		pair, public, err := seed.pair()
		if err != nil || !nkeys.IsValidPublicUserKey(public) {
			return nil, &ConfigError{Setting: "NATS nkey file",
				Reason: fmt.Sprintf("%s holds no user seed: %v", redact.Path(cfg.NKey),
					cmp.Or(err, errors.New("it is a seed of another kind")))}
		}
		pair.Wipe()
		options = append(options, nats.Nkey(public, seed.sign))
	}
	switch {
	case cfg.Password != "":
		options = append(options, nats.UserInfo(cfg.User, cfg.Password))
	case cfg.Token != "" || cfg.User != "":
		options = append(options, nats.Token(cmp.Or(cfg.Token, cfg.User)))
	}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, unreadable("NATS CA file", cfg.CA, err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, &ConfigError{Setting: "NATS CA file",
				Reason: redact.Path(cfg.CA) + " holds no certificate in PEM form"}
		}
		options = append(options, nats.RootCAs(cfg.CA))
	}
	if (cfg.Cert == "") != (cfg.Key == "") {
		return nil, &ConfigError{Setting: "NATS client certificate",
			Reason: "it needs its key, and the key needs it; give both"}
	}
	if cfg.Cert != "" {
		for setting, path := range map[string]string{"NATS client certificate": cfg.Cert,
			"key of the NATS client certificate": cfg.Key} {
			if err := file(setting, path); err != nil {
				return nil, err
			}
		}
		if _, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key); err != nil {
			return nil, &ConfigError{Setting: "NATS client certificate",
				Reason: fmt.Sprintf("%s with the key in %s: %s", redact.Path(cfg.Cert),
					redact.Path(cfg.Key), redact.FileError(err))}
		}
		options = append(options, nats.ClientCert(cfg.Cert, cfg.Key))
	}
	return options, nil
}

// textOption signs in with a JWT and a seed, a JWT alone (of a user whose account takes
// bearer tokens), or a seed alone.
func textOption(jwt, seed string) (nats.Option, error) {
	jwt, seed = strings.TrimSpace(jwt), strings.TrimSpace(seed)
	if seed == "" {
		return nats.UserJWT(func() (string, error) { return jwt, nil },
			func([]byte) ([]byte, error) { return nil, nil }), nil
	}
	pair, err := nkeys.FromSeed([]byte(seed))
	public := ""
	if err == nil {
		public, err = pair.PublicKey()
	}
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		return nil, &ConfigError{Setting: "NATS seed",
			Reason: "what is given is not the seed of a user, which begins with SU"}
	}
	if jwt != "" {
		return nats.UserJWTAndSeed(jwt, seed), nil
	}
	return nats.Nkey(public, pair.Sign), nil
}

// checkSubject refuses what cannot be the beginning of a subject.
func checkSubject(setting, prefix string) error {
	for token := range strings.SplitSeq(strings.TrimSuffix(prefix, "."), ".") {
		if token == "" || strings.ContainsAny(token, "*> \t\r\n\x00") {
			return &ConfigError{Setting: setting,
				Reason: fmt.Sprintf("%q cannot begin a subject: it is made of words with dots between, without "+
					"blanks and the signs * and >", redact.Text(prefix))}
		}
	}
	return nil
}

// inboxOf begins the subjects on which answers come to a connection.
func inboxOf(nc *nats.Conn) string {
	return strings.TrimSuffix(cmp.Or(nc.Opts.InboxPrefix, nats.InboxPrefix), ".") + "."
}

// parseURLs splits and checks a list of server URLs. Errors name the address by what may
// be shown of it (see [redact.URL]).
func parseURLs(list string) ([]string, error) {
	if strings.TrimSpace(list) == "" {
		list = nats.DefaultURL
	}
	all := strings.Split(list, ",")
	for i, raw := range all {
		full, wrong := parseURL(strings.TrimSpace(raw))
		if wrong != "" {
			which := "the address"
			if len(all) > 1 {
				which = fmt.Sprintf("address %d of %d", i+1, len(all))
			}
			if shown := redact.URL(strings.TrimSpace(raw)); shown != "" {
				which += fmt.Sprintf(" (%q)", shown)
			}
			return nil, fmt.Errorf("%s %s: write it like nats://nats.example.org:4222", which, wrong)
		}
		all[i] = full
	}
	return all, nil
}

// CheckURLs says what is wrong with a list of addresses as [ConnectConfig] has it,
// without the passwords and tokens in them.
func CheckURLs(list string) error {
	_, err := parseURLs(list)
	return err
}

// parseURL gives an address with its scheme, or what is wrong with it.
func parseURL(raw string) (full, wrong string) {
	if raw == "" {
		return "", "is empty"
	}
	if full = raw; !strings.Contains(full, "://") {
		full = "nats://" + full
	}
	u, err := url.Parse(full)
	if err != nil {
		// The parser's error quotes the address, password and all.
		if strings.Contains(raw, "@") {
			return "", "is no address of a server; signs such as / # ? % @ in a password are written as %2F %23 %3F " +
				"%25 %40, or the password is given by itself"
		}
		// The host is shown, if that is what it can only be; what stands where the port belongs
		// may be a password.
		if _, place, ok := strings.Cut(raw, "://"); ok && len(place) <= 100 && !strings.ContainsAny(place, "/?#%") &&
			!redact.Secret(place) {
			if host, _, _ := strings.Cut(place, ":"); strings.ContainsAny(host, " \t") {
				return "", fmt.Sprintf("is no address of a server, for %q is no name of a host", host)
			}
		}
		return "", "is no address of a server"
	}
	switch u.Scheme {
	case "nats", "tls", "ws", "wss":
	default:
		return "", "has a scheme that is none of nats, tls, ws, wss"
	}
	if u.Hostname() == "" {
		return "", "names no host"
	}
	if strings.ContainsAny(u.Host, " \t\"'<>") {
		return "", "names no host that could exist"
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return "", "has a port that is no number from 1 to 65535"
		}
	}
	if u.Path != "" && u.Path != "/" && u.Scheme != "ws" && u.Scheme != "wss" {
		return "", "has something behind the host; if that is a part of a password, write / as %2F"
	}
	if redact.URL(raw) == "" { // the host goes into the log, where it is looked for, say
		return "", "names no host that can be told from a key"
	}
	return full, ""
}

// connLog writes down the states of a connection, each when it begins, so that a day of
// retries is one line.
type connLog struct {
	log         zerolog.Logger
	servers     string
	credentials string // what we sign in with, as it may be told
	dialer      *dialer

	// down has the states that were written down since the last time we were connected. Of
	// several servers one may be absent and the other refuse us, in turns and for days.
	down health.Condition

	mu    sync.Mutex
	since uint64 // the reconnect that was written down last, plus one
}

func (j *connLog) connected(nc *nats.Conn) {
	j.mu.Lock()
	count := nc.Stats().Reconnects + 1
	again := j.since == count // told by Connect and by the handler
	j.since = count
	was, back := j.down.Clear()
	j.mu.Unlock()
	if again {
		return
	}
	line := logevent.NATSConnected.Info(j.log)
	if back {
		line = logevent.NATSBack.Info(j.log).Stringer("after", time.Since(was.Since).Round(time.Millisecond))
	}
	line.Str("server", redact.URL(nc.ConnectedUrl())).Str("version", nc.ConnectedServerVersion()).
		Msg("connected to NATS")
}

func (j *connLog) disconnected(nc *nats.Conn, err error) {
	if nc.IsClosed() {
		return
	}
	why := "the server closed it"
	if err != nil {
		why = err.Error()
	}
	if _, news := j.down.Set("lost", why); news {
		logevent.NATSAway.Warn(j.log).Str("server", j.servers).Str("reason", why).
			Msg("connection to NATS lost; waiting for it to come back")
	}
}

// failed is called with the reason why an attempt to connect failed.
func (j *connLog) failed(_ *nats.Conn, err error) {
	if why := j.dialer.reason(); errors.Is(err, nats.ErrNoServers) && why != nil {
		err = why
	}
	state, message := diagnose(err)
	if _, news := j.down.Set(state, err.Error()); news {
		line := logevent.NATSAway.Warn
		if state == "refused" {
			line = func(log zerolog.Logger) *zerolog.Event {
				return logevent.NATSRefused.Warn(log).Str("credentials", j.credentials)
			}
		}
		line(j.log).Str("server", j.servers).Str("reason", err.Error()).Msg(message)
	}
}

// diagnose tells the ways apart in which an attempt to connect fails, for a person to act
// on.
func diagnose(err error) (state, message string) {
	text := strings.ToLower(err.Error())
	operation := ""
	if e, ok := errors.AsType[*net.OpError](err); ok {
		operation = e.Op
	}
	_, badCert := errors.AsType[*tls.CertificateVerificationError](err)
	_, badRecord := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired),
		errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired), strings.Contains(text, "authorization violation"),
		strings.Contains(text, "authentication"):
		return "refused", "NATS refuses our credentials; waiting until they are right (files are read again at each " +
			"attempt)"
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "tls", "the server offers no TLS, and the URL or an option of ours asks for it: switch it on there, or " +
			"use nats:// and no certificates; retrying"
	case badCert, badRecord, errors.Is(err, nats.ErrTLS), strings.Contains(text, "tls:"),
		strings.Contains(text, "x509:"),
		errors.Is(err, nats.ErrSecureConnRequired):
		return "tls", "TLS with NATS fails; check the CA file, the client certificate and the host name in the URL; " +
			"retrying"
	case errors.Is(err, nats.ErrNoInfoReceived), operation == "read" && strings.Contains(text, "timeout"),
		strings.Contains(text, "invalid character"):
		return "stranger", "what listens there is no NATS server, or one that hangs; check the URL and the server; " +
			"retrying"
	case operation == "dial", errors.Is(err, nats.ErrNoServers):
		return "absent", "NATS is not there; waiting for it"
	}
	return "failing", "connecting to NATS fails; retrying"
}

// watch reports failures of the handshake, which nats.go tells by no handler once the
// first attempt is over.
func (j *connLog) watch(nc *nats.Conn, changes chan nats.Status) {
	defer nc.RemoveStatusListener(changes)
	for range changes {
		if nc.IsClosed() {
			return
		}
		err := nc.LastError() // may be an old one of another sort
		if err == nil || errors.Is(err, nats.ErrPermissionViolation) || errors.Is(err, nats.ErrSlowConsumer) ||
			!nc.IsReconnecting() {
			continue
		}
		j.failed(nc, err)
	}
}

// complained gets all errors that belong to no call of ours.
func (j *connLog) complained(nc *nats.Conn, sub *nats.Subscription, err error) {
	if v, ok := parseViolation(err); ok {
		if strings.HasPrefix(v.subject, advisories) {
			j.log.Debug().Str("subject", v.subject).
				Msg("the user may not hear of changes to the stream; they are found a little later")
			return
		}
		if strings.HasPrefix(v.subject, inboxOf(nc)) {
			v.subject = inboxOf(nc) + ">" // the rest is another one each time
		}
		logevent.PermissionMissing.Warn(j.log).Str("subject", v.subject).Str("action", v.action).
			Msg("NATS refuses: the user lacks a permission")
		return
	}
	if !nc.IsConnected() {
		// What is no news about connecting is about the connection that was lost, and
		// that has been told.
		if state, _ := diagnose(err); state != "failing" {
			j.failed(nc, err)
		}
		return
	}
	event := logevent.NATSProblem.Warn(j.log).Str("reason", err.Error())
	if sub != nil {
		event = event.Str("subject", sub.Subject)
	}
	event.Msg("NATS connection reports a problem")
}

func (j *connLog) closed(nc *nats.Conn) {
	if err := nc.LastError(); err != nil && !errors.Is(err, nats.ErrPermissionViolation) {
		logevent.NATSClosed.Info(j.log).Str("reason", err.Error()).Msg("connection to NATS closed")
	}
}

func (j *connLog) lameDuck(nc *nats.Conn) {
	logevent.NATSStopping.Info(j.log).Str("server", redact.URL(nc.ConnectedUrl())).
		Msg("this NATS server is about to stop; another one will be looked for")
}
