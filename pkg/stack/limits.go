package stack

import (
	"fmt"
	"net/http"
	"net/netip"
	"runtime"
	"time"

	"github.com/attestry/attestry/internal/limit"
	"github.com/attestry/attestry/pkg/log/ct"
	"github.com/attestry/attestry/pkg/log/rekor1"
	"github.com/attestry/attestry/pkg/log/rekor2"
)

// Limits are what clients may ask of the logs of one server at once. All fields must be set: begin with DefaultLimits.
type Limits struct {
	Rekor1Body, Rekor2Body, CTBody int64         // bytes of one request's body
	BodyTime                       time.Duration // for all of a body
	BodiesInFlight                 int64         // bytes of all bodies in memory
	CallerPerSecond                float64       // searches, proposed entries and get-entries of one address
	CallerBurst                    int
	TrustedProxies                 []netip.Prefix // whose X-Forwarded-For names the caller
}

// DefaultLimits suit a server that has a machine to itself. A client that verifies asks for two units; 200
// in a second are more than what the processors of two machines could sign or verify.
func DefaultLimits() Limits {
	return Limits{
		Rekor1Body: rekor1.DefaultMaxBody, Rekor2Body: rekor2.DefaultMaxBody, CTBody: ct.DefaultMaxBody,
		BodyTime: limit.DefaultBodyTime, BodiesInFlight: 512 << 20, CallerPerSecond: 200, CallerBurst: 2000,
	}
}

// Validate reports limits that would refuse everything.
func (l Limits) Validate() error {
	switch largest := max(l.Rekor1Body, l.Rekor2Body, l.CTBody); {
	case min(l.Rekor1Body, l.Rekor2Body, l.CTBody) <= 0 || l.BodyTime <= 0:
		return fmt.Errorf("limits of bodies and of their time must be positive")
	case l.CallerPerSecond <= 0 || l.CallerBurst < 1:
		return fmt.Errorf("the budget of a caller must be positive")
	default:
		return limit.ValidateBytes(l.BodiesInFlight, largest)
	}
}

const (
	roomWait    = 2 * time.Second // for a body that finds no room in BodiesInFlight
	verifyQueue = 4096            // requests that wait for their verification, as many as may wait for a batch
)

// bounds are the limits at work, shared by all APIs of a server.
type bounds struct {
	limits  Limits
	bytes   *limit.Bytes
	callers *limit.Callers
	verify  *limit.Work
}

func (l Limits) bounds() bounds {
	return bounds{
		limits: l, bytes: limit.NewBytes(l.BodiesInFlight, roomWait),
		callers: limit.NewCallers(limit.CallerOptions{PerSecond: l.CallerPerSecond, Burst: l.CallerBurst, Proxies: l.TrustedProxies}),
		verify:  limit.NewWork(runtime.GOMAXPROCS(0), verifyQueue),
	}
}

func (b bounds) body(max int64) limit.Body {
	return limit.Body{Max: max, Time: b.limits.BodyTime, Bytes: b.bytes}
}

// Bounded puts a gRPC server under the limits of all bodies; what one message may have is its own.
func (l *Logs) Bounded(g http.Handler) http.Handler { return l.bounds.body(0).Stream(g) }
