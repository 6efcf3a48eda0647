package tiles

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/attestry/attestry/internal/fault"
)

const (
	// requestTimeout bounds one HTTP exchange with the object store, requestAttempts how many of
	// them one read or write may take.
	requestTimeout  = 10 * time.Second
	requestAttempts = 3
	// maxObject is the size of an object that a read still accepts: 256 entries of 65,535 bytes
	// take 16 MiB, a CT data tile holds up to 256 chains' worth of certificates.
	maxObject = 64 << 20
)

// sdkConfig is the whole configuration of the S3 client. Nothing of it comes from the environment
// unless o.AmbientCredentials says so.
func sdkConfig(ctx context.Context, o S3Options) (aws.Config, error) {
	cfg := aws.Config{}
	if o.AmbientCredentials {
		ambient, err := config.LoadDefaultConfig(ctx, config.WithRegion(o.Region))
		if err != nil {
			return aws.Config{}, fmt.Errorf("finding credentials for the object store: %w", err)
		}
		cfg.Credentials = ambient.Credentials
	} else {
		accessKey, err := secret(o.AccessKey, o.AccessKeyFile, "S3 access key")
		if err != nil {
			return aws.Config{}, err
		}
		secretKey, err := secret(o.SecretKey, o.SecretKeyFile, "S3 secret key")
		if err != nil {
			return aws.Config{}, err
		}
		cfg.Credentials = credentials.NewStaticCredentialsProvider(accessKey, secretKey, "")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // only the endpoint is contacted
	transport.MaxIdleConnsPerHost = 64
	cfg.Region = o.Region
	cfg.BaseEndpoint = aws.String(o.Endpoint)
	cfg.HTTPClient = &http.Client{Timeout: requestTimeout, Transport: transport}
	cfg.Retryer = func() aws.Retryer {
		return retry.NewStandard(func(r *retry.StandardOptions) { r.MaxAttempts, r.MaxBackoff = requestAttempts, time.Second })
	}
	return cfg, nil
}

// clientOptions suits servers other than AWS too. Bodies are covered by the request's signature; a
// checksum trailer, which the SDK would add, is unknown to many servers. Checksums in answers are verified.
func clientOptions(o S3Options) func(*s3.Options) {
	return func(c *s3.Options) {
		c.UsePathStyle = o.PathStyle
		c.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		c.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenSupported
		c.DisableLogOutputChecksumValidationSkipped = true
		c.DisableS3ExpressSessionAuth = aws.Bool(true)
		if o.Prefix != "" {
			c.APIOptions = append(c.APIOptions, func(stack *middleware.Stack) error {
				return stack.Initialize.Add(underPrefix(o.Prefix+"/"), middleware.Before)
			})
		}
	}
}

// underPrefix puts every object of the log below prefix. Tessera 1.0.4 has an option for it, but
// with it reads back the wrong key after a failed precondition: a cut integration could never be repeated.
func underPrefix(prefix string) middleware.InitializeMiddleware {
	under := func(key *string) *string { return aws.String(prefix + aws.ToString(key)) }
	return middleware.InitializeMiddlewareFunc("attestry-prefix", func(ctx context.Context, in middleware.InitializeInput,
		next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
		switch p := in.Parameters.(type) {
		case *s3.GetObjectInput:
			c := *p
			c.Key = under(p.Key)
			in.Parameters = &c
		case *s3.PutObjectInput:
			c := *p
			c.Key = under(p.Key)
			in.Parameters = &c
		case *s3.ListObjectsV2Input: // the keys it returns, and that DeleteObjects is given, are whole
			c := *p
			c.Prefix = under(p.Prefix)
			in.Parameters = &c
		}
		return next.HandleInitialize(ctx, in)
	})
}

// objects reads the objects of one log. Tessera's reader of its AWS driver hides which of its errors
// mean that there is no such object, so it never finds a full tile in place of a collected partial one.
type objects struct {
	client *s3.Client
	bucket string
}

// get returns an object, os.ErrNotExist when there is none, fault.Unavailable when the store does not say.
func (o *objects) get(ctx context.Context, key string) ([]byte, error) {
	out, err := o.client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(o.bucket), Key: aws.String(key)})
	if err != nil {
		if missing := (*types.NoSuchKey)(nil); errors.As(err, &missing) {
			return nil, fmt.Errorf("object %s: %w", key, os.ErrNotExist)
		}
		return nil, storeError(ctx, err)
	}
	raw, err := io.ReadAll(io.LimitReader(out.Body, maxObject+1))
	if err := errors.Join(err, out.Body.Close()); err != nil {
		return nil, storeError(ctx, fmt.Errorf("reading object %s: %w", key, err))
	}
	if len(raw) > maxObject {
		return nil, fmt.Errorf("object %s has over %d bytes", key, maxObject)
	}
	return raw, nil
}

// storeError tells an end of ctx from a fault of the object store or its database.
func storeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	return fault.New(fault.Unavailable, "store_unavailable", err, "the log's store does not answer now; try again")
}

// secret returns value or, when it is empty, the content of file without its last line break.
func secret(value, file, what string) (string, error) {
	if value != "" || file == "" {
		if value == "" {
			return "", fault.New(fault.Invalid, "secret_missing", nil, "no %s is configured", what)
		}
		return value, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading the %s: %w", what, err)
	}
	if value = strings.TrimRight(string(raw), "\r\n"); value == "" {
		return "", fault.New(fault.Invalid, "secret_missing", nil, "the %s in %s is empty", what, file)
	}
	return value, nil
}

// cleanPrefix returns prefix without slashes at its ends.
func cleanPrefix(prefix string) (string, error) {
	trimmed := strings.Trim(prefix, "/")
	if trimmed != "" && (path.Clean(trimmed) != trimmed || strings.HasPrefix(trimmed, "..")) {
		return "", fault.New(fault.Invalid, "prefix_invalid", nil, "the prefix %q has empty or dotted parts", prefix)
	}
	return trimmed, nil
}
