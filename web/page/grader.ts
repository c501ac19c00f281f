/**
 * The user's reward, where it can do no harm: in a worker of its own, which may load nothing and ask nobody (its policy is
 * that of the frame below, an origin of its own), and which is ended when it takes too long.
 */
import { element } from '../../watch/page/dom.ts';

/** What `build.ts` puts in: the script of the frame, bundled from frame.ts. */
declare const FRAME: string;

const POLICY = "default-src 'none'; script-src 'unsafe-inline'; worker-src blob:";

export type Grader = {
  /** Takes another function from now on. */
  use(code: string): void;
  /** A port for one trainer: completions go in, rewards come out. */
  connect(): MessagePort;
};

export async function createGrader(code: string): Promise<Grader> {
  const frame = element('iframe', {
    ...{ sandbox: 'allow-scripts', hidden: true, title: 'the reward', 'aria-hidden': 'true' },
    srcdoc: `<!doctype html><meta http-equiv="Content-Security-Policy" content="${POLICY}"><script>${FRAME}</script>`,
  });
  const isLoaded = new Promise((resolve) => frame.addEventListener('load', resolve, { once: true }));
  document.body.append(frame);
  await isLoaded;
  // The frame's origin is no place that a message could be addressed to.
  const say = (message: string | null, ports: MessagePort[] = []) =>
    frame.contentWindow!.postMessage(message, '*', ports);
  say(code);
  return {
    use: (code) => say(code),
    connect() {
      const { port1, port2 } = new MessageChannel();
      say(null, [port2]);
      return port1;
    },
  };
}
