package stream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// To erase is what nats-server does with STREAM.MSG.DELETE where no_erase is not asked
// for: it writes random bytes over the message in the file, or writes the file anew
// without it (filestore.go, eraseMsg). A store that is encrypted it leaves as it is, since
// nobody reads that without the key.

// codeDeleteFailed is JetStream's answer to a delete that was not carried out: the stream
// has deny_delete, or there is no such message (nats-server, errors.json).
const codeDeleteFailed = 10057

// Erase overwrites the message with that sequence, and removes it. One that is not there
// any more is no error. epoch is that of the connection on which it was read ([Stream.Epoch]):
// on another one the sequence may be that of another message, and the error is Refused.
//
// The stream's last sequence stays what it is, whatever is erased. What the next write
// must follow does not, if that was the message: so whoever writes does not erase his own
// newest one.
func (s *Stream) Erase(ctx context.Context, epoch, seq uint64) error {
	return s.eraseIn(ctx, s.name, epoch, seq)
}

func (s *Stream) eraseIn(ctx context.Context, stream string, epoch, seq uint64) error {
	what := fmt.Sprintf("stream %s: erasing message %d", stream, seq)
	if s.Epoch() != epoch {
		return errorf(Refused, "%s: the connection is another one than it was read on; it has to be read again", what)
	}
	err := s.link.ask(ctx, what, s.api+"STREAM.MSG.DELETE."+stream, map[string]uint64{"seq": seq}, apiTimeout,
		&apiReply{})
	e, _ := errors.AsType[*Error](err)
	switch {
	case e == nil:
		return err
	case e.Code == 10043, e.Code == 10037: // sequence not found, no message found
		return nil
	case e.Code == codeDeleteFailed:
		// A store says so of a message that is not there, too.
		if m, err := s.get(ctx, stream, getRequest{Seq: seq}); err == nil && m == nil {
			return nil
		}
		return errorf(Wrong, "%w; if its deny_delete is on, only another stream helps", e)
	}
	return err
}

// objectStream is the stream below the realm's object store, metaSubject where it says
// what it knows of an object.
func (s *Stream) objectStream() string { return "OBJ_" + s.cfg.Bucket }

func metaSubject(bucket, name string) string {
	return "$O." + bucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

// about reads what the object store knows of an object; nil if it has none of that name, or
// if there is no object store.
func (s *Stream) about(ctx context.Context, name string) (*Stored, *jetstream.ObjectInfo, error) {
	m, err := s.get(ctx, s.objectStream(), getRequest{LastFor: metaSubject(s.cfg.Bucket, name)})
	if e, ok := errors.AsType[*Error](err); ok && e.Kind == Gone {
		return nil, nil, nil
	}
	if err != nil || m == nil {
		return nil, nil, err
	}
	info := new(jetstream.ObjectInfo)
	if err := json.Unmarshal(m.Data, info); err != nil {
		return nil, nil, errorf(Wrong, "object store %s: what it says of %s is not understood: %w", s.cfg.Bucket, name,
			err)
	}
	return m, info, nil
}

// chunks calls f with each message that has bytes of an object, in their order.
func (s *Stream) chunks(ctx context.Context, nuid string, f func(*Stored) error) error {
	if nuid == "" { // of an object that was deleted, or of a link
		return nil
	}
	subject := "$O." + s.cfg.Bucket + ".C." + nuid
	for next := uint64(1); ; {
		m, err := s.get(ctx, s.objectStream(), getRequest{Seq: next, NextFor: subject})
		if err != nil || m == nil {
			return err
		}
		if err := f(m); err != nil {
			return err
		}
		next = m.Seq + 1
	}
}

// Object reads what [Stream.PutObject] keeps under name; nil if it has nothing of that
// name. An object that is not whole, because it is being replaced or erased, is
// Unavailable.
func (s *Stream) Object(ctx context.Context, name string) ([]byte, error) {
	_, info, err := s.about(ctx, name)
	if err != nil || info == nil {
		return nil, err
	}
	data := make([]byte, 0, min(info.Size, recordMax))
	err = s.chunks(ctx, info.NUID, func(m *Stored) error {
		data = append(data, m.Data...)
		return nil
	})
	if err == nil && uint64(len(data)) != info.Size {
		err = errorf(Unavailable, "object store %s: %s has %d bytes there instead of %d", s.cfg.Bucket, name, len(data),
			info.Size)
	}
	return data, err
}

// EraseObject overwrites and removes all that the object store has of an object: its bytes
// first, and then its name, so that what was broken off is found again. What is not there
// is no error. For epoch see [Stream.Erase].
func (s *Stream) EraseObject(ctx context.Context, epoch uint64, name string) error {
	m, info, err := s.about(ctx, name)
	if err != nil || m == nil {
		return err
	}
	if err := s.eraseChunks(ctx, epoch, info.NUID); err != nil {
		return err
	}
	return s.eraseIn(ctx, s.objectStream(), epoch, m.Seq)
}

func (s *Stream) eraseChunks(ctx context.Context, epoch uint64, nuid string) error {
	return s.chunks(ctx, nuid, func(m *Stored) error {
		return s.eraseIn(ctx, s.objectStream(), epoch, m.Seq)
	})
}

// CheckErase says whether messages can be erased in the stream and in the object store:
// neither has deny_delete, and this user has the rights. It asks for nothing to be erased.
// A [*ConfigError] says what a person has to change; any other error, that it could not be
// looked at.
func (s *Stream) CheckErase(ctx context.Context) error {
	for _, name := range []string{s.name, s.objectStream()} {
		info, err := s.readInfo(ctx, name)
		if e, ok := errors.AsType[*Error](err); ok && name != s.name && (e.Kind == Gone || e.Kind == Forbidden) {
			continue // no object store yet, or none for us: nothing of ours is in it
		}
		if err != nil {
			return err
		}
		if info.Config.DenyDelete {
			return &ConfigError{Stream: name, Setting: "deny_delete",
				Reason: "its deny_delete is on, so nothing of it can be erased, and that cannot be changed: use another " +
					"stream, or leave out --erase-deleted"}
		}
		subject := s.api + "STREAM.MSG.DELETE." + name
		err = (&Conn{Conn: s.link.nc, link: s.link}).Probe(ctx, "stream "+name+": erasing messages", subject)
		if e, ok := errors.AsType[*Error](err); ok && e.Kind == Forbidden {
			return &ConfigError{Stream: name, Setting: "right to erase",
				Reason: e.Error() + "; or leave out --erase-deleted"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
