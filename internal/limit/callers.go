package limit

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/attestry/attestry/internal/fault"
)

// maxCallers is how many callers are remembered, about 3 MiB. One who was forgotten begins again with a full budget.
const maxCallers = 16384

// CallerOptions say how much one caller may ask for.
type CallerOptions struct {
	PerSecond float64 // units that a caller gets each second
	Burst     int     // units that an idle caller has saved up
	// Proxies are those whose X-Forwarded-For is believed. Without them a caller is whoever opened the connection.
	Proxies []netip.Prefix
	Now     func() time.Time // nil means time.Now
}

// Callers gives each caller a budget for expensive requests: an IPv4 address, or an IPv6 network of 64
// bits, which is what one customer of a provider has. Its methods may be called concurrently.
type Callers struct {
	opts    CallerOptions
	budgets *Budgets[netip.Addr]
}

// NewCallers returns budgets that are full.
func NewCallers(opts CallerOptions) *Callers {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Callers{opts: opts, budgets: NewBudgets[netip.Addr](opts.PerSecond, opts.Burst, maxCallers)}
}

// Spend takes units from the budget of r's caller. A request of more units than Burst counts as Burst. When the budget
// does not have them, nothing is taken and the error is fault.Limited with the time after which it will.
func (c *Callers) Spend(r *http.Request, units int) error {
	if c == nil || units <= 0 {
		return nil
	}
	return spent(c.budgets.Spend(c.address(r), c.opts.Now(), units))
}

// Left returns the error of Spend when the budget of r's caller has not one unit left, and takes none: for requests
// that cost only when they turn out to be bad.
func (c *Callers) Left(r *http.Request) error {
	if c == nil {
		return nil
	}
	return spent(c.budgets.Wait(c.address(r), c.opts.Now()))
}

func spent(wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	err := fault.New(fault.Limited, "caller_budget", nil, "too many expensive requests from one address; try again later")
	err.RetryAfter = wait
	return err
}

// address returns who asks. X-Forwarded-For is read from its end, where the nearest proxy wrote, up to
// the first address that is no trusted proxy's: what stands before it anybody may have written. The
// zero address stands for connections that have none, such as those of a Unix socket.
func (c *Callers) address(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		if !c.trusted(addr) {
			break
		}
		before, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			break
		}
		addr = before.Unmap()
	}
	addr = addr.WithZone("")
	if addr.Is6() {
		if network, err := addr.Prefix(64); err == nil {
			return network.Addr()
		}
	}
	return addr
}

func (c *Callers) trusted(addr netip.Addr) bool {
	return slices.ContainsFunc(c.opts.Proxies, func(p netip.Prefix) bool { return p.Contains(addr.WithZone("")) })
}

// ParseProxies reads addresses and networks ("10.0.0.0/8", "fd00::1").
func ParseProxies(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		if addr, err := netip.ParseAddr(text); err == nil {
			out = append(out, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, prefix)
	}
	return out, nil
}
