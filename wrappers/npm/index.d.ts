/** A throwaway Sigstore that runs. */
export interface Sigstore {
  /** Of everything: CA, logs, timestamp authority. */
  readonly url: string;
  readonly tufURL: string;
  /** The identity provider of token(). */
  readonly issuerURL: string;
  /** Removed by stop(). */
  readonly dir: string;
  /** What clients find the instance by: ATTESTRY_URL, TUF_MIRROR, TUF_ROOT_JSON and others. */
  readonly env: Record<string, string>;
  /** Path of a file for clients, such as trusted_root.json or signing_config.v0.2.json. */
  file(name: string): string;
  /** An identity token, good for ten minutes. claims are added last and replace any; null takes one away. */
  token(email: string, claims?: Record<string, unknown>): Promise<string>;
  stop(): Promise<void>;
}

export interface Options {
  /** The attestry program. Default: ATTESTRY_BIN, else attestry on the path. */
  binary?: string;
  /** Further flags of `attestry up`. */
  args?: string[];
}

/** Starts an instance and resolves when all of it answers. It ends with stop(), and with this process, however that ends. */
export function start(options?: Options): Promise<Sigstore>;
