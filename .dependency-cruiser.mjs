/** The floors of lib/, from the ground up: no import runs up a floor, and none in a circle. */
const FLOORS = [
  '[a-z_]+\\.ts', // errors, texts, files, random numbers, statistics
  'ops',
  'model',
  'checkpoint',
  'backend',
  'generation',
  'training',
  'distributed',
  'environments',
  'run',
  'cli',
];
const pathOf = (floor) => (floor.endsWith('.ts') ? `^lib/(?!index)${floor}$` : `^lib/${floor}/`);
// Tests and what they share may look anywhere.
const TESTS = '\\.test\\.ts$|/comparisons\\.ts$';

export default {
  forbidden: [
    {
      name: 'no-circle',
      comment: 'Whoever reads one of these files must read all of them.',
      severity: 'error',
      from: {},
      to: { circular: true },
    },
    ...FLOORS.slice(0, -1).map((floor, i) => ({
      name: `${floor.replace(/\W.*/, 'ground')}-looks-up`,
      comment: 'A floor of lib/ imports from itself and from those below.',
      severity: 'error',
      from: { path: pathOf(floor), pathNot: TESTS },
      to: { path: FLOORS.slice(i + 1).map(pathOf) },
    })),
    {
      name: 'lib-knows-no-algorithm',
      comment: 'lib/ stands below the experiments.',
      severity: 'error',
      from: { path: '^lib/', pathNot: TESTS },
      to: { path: '^(experiment_|trainer|tasks|tools|watch|web|bench|models|notebooks|testing)' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '^(dist|lib/dist|runs|node_modules)/' },
    tsPreCompilationDeps: true, // types, too
    tsConfig: { fileName: 'tsconfig.json' },
    enhancedResolveOptions: { extensions: ['.ts', '.mjs', '.js', '.json'] },
  },
};
