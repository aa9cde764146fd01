// Package logevent names what the log tells, so that an alert can go by a name and not by
// the words of a sentence, which may be worded better one day.
//
// Each line above debug level begins with its name:
//
//	logevent.LeaseLost.Warn(log).Str("reason", why).Msg("the lease is lost")
//
// gives {"level":"warn","event":"lease_lost","reason":...}. Lines that would raise the
// same alert have the same name, however they are worded. Once released a name stays.
// docs/log.md says of each what to do; a test compares it with the code, and finds lines
// without a name.
package logevent

import "github.com/rs/zerolog"

// Name is what a line tells, in snake_case.
type Name string

// Field is the field that has the name.
const Field = "event"

// Info begins a line of that level.
func (n Name) Info(log zerolog.Logger) *zerolog.Event { return log.Info().Str(Field, string(n)) }

// Warn begins a line of that level.
func (n Name) Warn(log zerolog.Logger) *zerolog.Event { return log.Warn().Str(Field, string(n)) }

// Error begins a line of that level.
func (n Name) Error(log zerolog.Logger) *zerolog.Event { return log.Error().Str(Field, string(n)) }

// The start.
const (
	VariablesUnknown  Name = "variables_unknown"  // a variable ZULIP_NATS_... that no option has
	VariablesUnused   Name = "variables_unused"   // variables of one account, and there may be several
	CredentialsUnused Name = "credentials_unused" // credentials for NATS, and the server is the embedded one
	EmbeddedStarted   Name = "embedded_started"   // the embedded NATS server runs
	HTTPServed        Name = "http_served"        // the HTTP endpoints answer
	SystemdAway       Name = "systemd_away"       // systemd cannot be told how this process is
	StatusUnseen      Name = "status_unseen"      // this instance cannot be found on the bus
	LetIn             Name = "let_in"             // Zulip says who we are
	AccountUnknown    Name = "account_unknown"    // Zulip does not say who we are
	PersonalKey       Name = "personal_key"       // the key is that of a person
	TypeUnknown       Name = "type_unknown"       // no Zulip has events of a type that is asked for
	ChannelUnseen     Name = "channel_unseen"     // --narrow names a channel that the account does not see
	NoChannels        Name = "no_channels"        // the account gets nothing of channels
	ShowStopped       Name = "show_stopped"       // run --show prints no more
	StartFromIgnored  Name = "start_from_ignored" // --start-from, and it is not the first start
)

// The end, and the hours until then.
const (
	Hourly          Name = "hourly"            // what was done in the last hour
	Stopped         Name = "stopped"           // the program ends as it was asked to
	Failed          Name = "failed"            // the program ends, and not as it was asked to
	RealmHalted     Name = "realm_halted"      // one of several realms is stopped, since an operator has to mend something
	RealmEnded      Name = "realm_ended"       // a realm was stopped for a reload, and not all went well
	Reloaded        Name = "reloaded"          // the settings were read again, and are in force
	ReloadFailed    Name = "reload_failed"     // the settings were read again, and stay as they were
	ReloadPartly    Name = "reload_partly"     // some of them take a new start
	QueueNotDeleted Name = "queue_not_deleted" // --delete-queue had nothing to delete
)

// Zulip.
const (
	ZulipAway           Name = "zulip_away"           // no answer, or one that a later try may heal
	ZulipBack           Name = "zulip_back"           // the end of ZulipAway, RateLimited and KeyRefused
	RateLimited         Name = "rate_limited"         // Zulip tells us to wait
	KeyRefused          Name = "key_refused"          // Zulip does not let us in (any more)
	CertificatesIgnored Name = "certificates_ignored" // the zuliprc says insecure
	HistorySilent       Name = "history_silent"       // Zulip's history does not say where it ends
	AccountRenamed      Name = "account_renamed"      // the account has another e-mail address
	OrganizationMoved   Name = "organization_moved"   // the organization has another address
)

// The queue.
const (
	QueueRegistered  Name = "queue_registered"   // a new queue is followed
	QueueResumed     Name = "queue_resumed"      // the queue of before is followed further
	QueueChangedOver Name = "queue_changed_over" // a new queue is about to follow a living one
	QueueShared      Name = "queue_shared"       // somebody else polls the queue
	QueueRecordGone  Name = "queue_record_gone"  // the stream's limits took the queue's record
	OptionsRefused   Name = "options_refused"    // Zulip registers no queue with our options
	OptionsDiffer    Name = "options_differ"     // another instance has other options
	PollRefused      Name = "poll_refused"       // Zulip refuses a poll: the queue may be lost
	PollTaken        Name = "poll_taken"         // it is not
	StateWritten     Name = "state_written"      // a whole state is in the stream
	StateMissing     Name = "state_missing"      // a state that was asked for is not
	StateNotPurged   Name = "state_not_purged"   // those before it stay
)

// Gaps, and what is read back from history.
const (
	GapOpened         Name = "gap_opened"         // a queue is lost
	RefillStarted     Name = "refill_started"     // its messages are being read back
	GapClosed         Name = "gap_closed"         // they are, as far as that is possible
	StartFromStored   Name = "start_from_stored"  // likewise, for --start-from
	HistoryUnreadable Name = "history_unreadable" // a message of history is no message
	RefillTooLarge    Name = "refill_too_large"   // a message of history fits nowhere
	MessagesErased    Name = "messages_erased"    // what was deleted at Zulip is erased
	ErasingFails      Name = "erasing_fails"      // it cannot be, for now
	ErasingAgain      Name = "erasing_again"      // the end of ErasingFails
	StreamWentBack    Name = "stream_went_back"   // the stream lost what it had acknowledged
	StreamMadeGood    Name = "stream_made_good"   // Zulip still has that
	EventRejected     Name = "event_rejected"     // an event cannot be carried as it is
	EventOversize     Name = "event_oversize"     // an event went to the object store
	ObjectStoreAway   Name = "object_store_away"  // the object store takes nothing
)

// NATS: the connection.
const (
	NATSConnected     Name = "nats_connected"     // the first connection, at once
	NATSAway          Name = "nats_away"          // no connection
	NATSRefused       Name = "nats_refused"       // no connection, since our credentials are wrong
	NATSBack          Name = "nats_back"          // the end of NATSAway and NATSRefused
	NATSClosed        Name = "nats_closed"        // the connection was closed for good
	NATSStopping      Name = "nats_stopping"      // the server is about to stop
	NATSProblem       Name = "nats_problem"       // the connection complains
	PermissionMissing Name = "permission_missing" // our user lacks a right
	EmbeddedServer    Name = "embedded_server"    // what the embedded server says itself
	DiskFull          Name = "disk_full"          // the disk of the embedded server is
)

// NATS: JetStream and our stream.
const (
	JetStreamAway    Name = "jetstream_away"    // nothing can be stored, or read back
	JetStreamBack    Name = "jetstream_back"    // the end of JetStreamAway
	WritesUnanswered Name = "writes_unanswered" // reads work, writes have no answer
	WriteRefused     Name = "write_refused"     // something else was stored first
	OthersPublish    Name = "others_publish"    // somebody else writes on our subjects
	StreamAwaitsKey  Name = "stream_awaits_key" // it is made when Zulip has let us in
	StreamCreated    Name = "stream_created"    // it is made
	StreamUsed       Name = "stream_used"       // where events go
	StreamRisky      Name = "stream_risky"      // a setting of it is legal and risky
	StreamUnlike     Name = "stream_unlike"     // it is there, and not as the options say
)

// Several instances.
const (
	Standby          Name = "standby"           // another instance leads
	Leading          Name = "leading"           // this one does, after it stood by
	LeaseTakenOver   Name = "lease_taken_over"  // from a process that is gone
	LeaseUnsure      Name = "lease_unsure"      // it cannot be asked for, or renewed
	LeaseRenewed     Name = "lease_renewed"     // the end of that
	LeaseLost        Name = "lease_lost"        // this instance leads no more
	HandedOver       Name = "handed_over"       // likewise, and another one asked for that
	LeaseUnavailable Name = "lease_unavailable" // there is no lease here
	Overtaken        Name = "overtaken"         // another instance stored events meanwhile
)
